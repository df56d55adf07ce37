"""What the modules know about GGUF files: header, length, sha256, the record of a verification.

Runs on the hosts: Python standard library only, 3.9 or later.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import string
import struct
import tempfile
from urllib.parse import urlsplit

# "GGUF", version (uint32), number of tensors and of metadata entries (uint64 each), little-endian.
# Source: docs/gguf.md of ggml.
MAGIC = b"GGUF"
HEADER = struct.Struct("<4sIQQ")
# Version 1 is refused by llama.cpp itself (gguf.cpp: "GGUFv1 is no longer supported").
READABLE_VERSIONS = (2, 3)

WAIVED = "none"


def header_problem(path):
    """Say why a file is no GGUF file that llama.cpp reads; an empty string when it is one.

    Arguments: path (str) of an existing file.
    Errors: OSError when the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty (0 bytes)"
    if head[:4] != MAGIC:
        return _what_it_is(head)
    if len(head) < HEADER.size:
        return f"its header is cut off after {len(head)} bytes"
    version = HEADER.unpack_from(head)[1]
    if version in READABLE_VERSIONS:
        return ""
    if struct.unpack(">I", struct.pack("<I", version))[0] in (1, *READABLE_VERSIONS):
        return "it is a big-endian GGUF file; take the little-endian one"
    readable = " and ".join(map(str, READABLE_VERSIONS))
    return f"it has GGUF version {version}; llama.cpp reads {readable}"


def _what_it_is(head):
    """Describe the first bytes of something that is not GGUF, with what a person can recognise."""
    printable = set(string.printable.encode())
    first = bytes(byte for byte in head if byte in printable).decode("ascii")
    first = " ".join(first.split())[:60]
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_text = all(byte in printable or byte >= 0x80 for byte in head)
    if start.startswith(b"version https://git-lfs"):
        return f"it is a git-lfs pointer, not the file itself (use the /resolve/ URL): {first!r}"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return f"it is an HTML or XML page: {first!r}"
    if is_text and start.startswith((b"{", b"[")):
        return f"it is JSON: {first!r}"
    if is_text:
        return f"it is text: {first!r}"
    return f"it does not begin with GGUF but with bytes {head[:4].hex()}: {first!r}"


def sha256_of(path, progress=None):
    """Return the sha256 of a file as 64 lower-case hexadecimal digits.

    Arguments:
        path (str): the file.
        progress (callable): is told the bytes (int) read so far, after each block.

    Errors: OSError when the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
            if progress:
                progress(file.tell())
    return digest.hexdigest()


def record_path(path):
    """Return where the record of the verification of a file is kept: DIR/.FILE.verified."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.verified")


def read_record(path):
    """Return the record of a file's verification, or None when there is none that can be read.

    The record is a dict: sha256 (str), size (bytes), mtime_ns, inode, url (str).
    """
    try:
        with open(record_path(path), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("sha256"), str) else None


def is_unchanged(path, record):
    """Whether a file is still the one that the record was written for (size, mtime and inode)."""
    if record is None:
        return False
    status = os.stat(path)
    return (record.get("size"), record.get("mtime_ns"), record.get("inode")) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ino,
    )


def write_record(path, sha256, url):
    """Record that a file has been verified. Errors: OSError when the directory cannot be written.

    Arguments: path (str) of the file, its sha256 (str), the url (str) it stands for.
    """
    status = os.stat(path)
    record = {
        "sha256": sha256,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "url": printable_url(url),
    }
    _save_record(path, record)


def distrust(path):
    """Let the record of a file (path, str) no longer vouch for it; what it should be stays recorded.

    Errors: OSError when the directory cannot be written.
    """
    _save_record(path, {**read_record(path), "inode": 0})


def _save_record(path, record):
    """Write the record (dict) of a file (path, str) in one step."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".verified-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, record_path(path))
    except BaseException:
        os.unlink(temporary)
        raise


def state_of(path, sha256, url):
    """Return what is known of a model file without reading it.

    Arguments:
        path (str): the model file.
        sha256 (str): 64 hexadecimal digits; ``none`` (waived); or empty (the source announces it).
        url (str): where it comes from. Without a given sha256 it stands for the content, so another
            url means another file.

    Returns one of
        absent: no file is there,
        verified: its record says that it is the wanted one, and it has not changed since,
        outdated: its record says that it is another one,
        unverified: only reading it can tell.
    """
    if not os.path.exists(path):
        return "absent"
    record = read_record(path)
    if not is_unchanged(path, record):
        return "unverified"
    if sha256 and sha256 != WAIVED:
        return "verified" if record["sha256"] == sha256.lower() else "outdated"
    return "verified" if record.get("url") == printable_url(url) else "outdated"


def printable_url(url):
    """Return a URL without user, password and query, which may be secrets.

    Arguments: url (str). Returns a str for messages and records.
    """
    parts = urlsplit(url)
    if not parts.scheme:
        return parts.path
    # By hand: urlunsplit drops the empty host of controller:///PATH.
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


# What a value of each metadata type takes in bytes; strings and arrays say their own length.
# Source: docs/gguf.md of ggml.
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING = 8
ARRAY = 9
UINT32 = struct.pack("<I", 4)
# Megabytes of words and merges that say nothing of sizes (the shapes of the tensors tell how many words).
VOCABULARY = b"tokenizer."
# A vocabulary of 256,000 words takes 7 MB.
MAX_HEADER_BYTES = 64 << 20
ALIGNMENT = b"general.alignment"
DEFAULT_ALIGNMENT = 32

# The types of tensors: how many elements make a block, and how many bytes that takes.
# Source: type_traits in ggml.c; the PyPI package gguf has the same table.
BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}


class _Head:
    """The first bytes of a file, read only as far as they are looked at.

    Arguments:
        read (callable): returns the next bytes (any number; none at the end of the file).
        limit (int): bytes that are read at most.
    """

    def __init__(self, read, limit):
        self._read = read
        self._limit = limit
        self.data = bytearray()
        self.position = 0

    def skip(self, length):
        """Move forward by length (int) bytes. Errors: ValueError at the end or the limit."""
        end = self.position + length
        if end > self._limit:
            raise ValueError(f"its header is longer than {self._limit >> 20} MiB")
        while len(self.data) < end:
            block = self._read()
            if not block:
                raise ValueError(f"it ends after {len(self.data)} bytes, within its header")
            self.data += block
        self.position = end

    def number(self, layout):
        """Return the next number, of a layout (str) of the module struct."""
        start = self.position
        self.skip(struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, start)[0]

    def skip_string(self):
        """Move behind a string, and return it as bytes."""
        length = self.number("<Q")
        start = self.position
        self.skip(length)
        return bytes(self.data[start : self.position])

    def skip_value(self, kind):
        """Move behind a metadata value of a type (int)."""
        if kind == STRING:
            self.skip_string()
        elif kind == ARRAY:
            item = self.number("<I")
            count = self.number("<Q")
            if item == STRING:
                for _string in range(count):
                    self.skip_string()
            else:
                self.skip(count * self._bytes(item))
        else:
            self.skip(self._bytes(kind))

    @staticmethod
    def _bytes(kind):
        """Return what a value of a type (int) takes; llama.cpp knows no arrays of arrays either."""
        if kind not in VALUE_BYTES:
            raise ValueError(f"its header has a value of the unknown type {kind}")
        return VALUE_BYTES[kind]


class _Header:
    """A whole header of GGUF, with the places of what is in it.

    Arguments: as sizing_header. Errors: ValueError with what is wrong with the file; what read raises.

    Attributes:
        version, tensors (int): GGUF version, number of tensors.
        entries (list): (key, its whole entry as bytes) of each metadata entry, in order.
        table (bytes): of tensors, as it is in the file.
        shapes (list): (elements, type, offset) of each tensor, all int.
        length (int): bytes of the header.
    """

    def __init__(self, read, limit):
        head = _Head(read, limit)
        head.skip(HEADER.size)
        magic, self.version, self.tensors, entries = HEADER.unpack_from(head.data)
        if magic != MAGIC or self.version not in READABLE_VERSIONS:
            raise ValueError("it is not a GGUF file that llama.cpp reads")
        self.entries = []
        for _entry in range(entries):
            start = head.position
            key = head.skip_string()
            head.skip_value(head.number("<I"))
            self.entries.append((key, bytes(head.data[start : head.position])))
        start = head.position
        self.shapes = []
        for _tensor in range(self.tensors):
            head.skip_string()
            elements = math.prod(head.number("<Q") for _dimension in range(head.number("<I")))
            self.shapes.append((elements, head.number("<I"), head.number("<Q")))
        self.table = bytes(head.data[start : head.position])
        self.length = head.position

    def alignment(self):
        """Return to what multiple (int, bytes) everything behind the header is padded."""
        for key, entry in self.entries:
            if key == ALIGNMENT:
                value = int.from_bytes(entry[-4:], "little")
                if entry[8 + len(key) : -4] != UINT32 or not value or value & (value - 1):
                    raise ValueError("its alignment is not a power of two")
                return value
        return DEFAULT_ALIGNMENT


def sizing_header(read, limit):
    """Return the header of a GGUF file without its vocabulary: again a GGUF header, a few KiB.

    Only lengths are looked at here; what the header says is for a real reader of GGUF. Metadata
    and the table of tensors stay as they are, entry by entry.

    Arguments:
        read (callable): returns the next bytes of the file (any number; none at its end).
        limit (int): bytes that are read at most.

    Errors: ValueError with what is wrong with the file; what read raises.
    """
    header = _Header(read, limit)
    kept = [entry for key, entry in header.entries if not key.startswith(VOCABULARY)]
    return HEADER.pack(MAGIC, header.version, header.tensors, len(kept)) + b"".join(kept) + header.table


def length_problem(path, strict=False):
    """Say why a GGUF file does not have the length that its own table of tensors gives it.

    Only the header is read. An empty string means that the length is right.

    Arguments:
        path (str): an existing file.
        strict (bool): whether a file that is too long is a problem, too.

    Errors: OSError when the file cannot be read.
    Source: gguf.cpp of llama.cpp: tensors follow the header at their offsets, header and tensors are padded.
    """
    try:
        with open(path, "rb") as file:
            header = _Header(lambda: file.read(1 << 18), MAX_HEADER_BYTES)
        alignment = header.alignment()
    except ValueError as error:
        return str(error)

    def padded(length):
        return -(-length // alignment) * alignment

    needed, longest = header.length, padded(header.length)
    start = longest
    for elements, kind, offset in header.shapes:
        # Of a type that is not known here, at least the beginning must be there.
        block, size = BLOCKS.get(kind, (1, 0))
        end = start + offset + elements // block * size
        needed, longest = max(needed, end), max(longest, padded(end))
    actual = os.path.getsize(path)
    if actual < needed:
        return f"it is cut off: {actual} of {needed} bytes"
    if strict and actual > longest and all(kind in BLOCKS for _elements, kind, _offset in header.shapes):
        return f"it is longer than its own table of tensors says: {actual} bytes, not {longest}"
    return ""
