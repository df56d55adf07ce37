"""What the modules know about the directory of model files: what is in place, and how a file gets there.

Runs on the hosts: Python standard library only, 3.9 or later.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from ansible.module_utils.gguf import (
    WAIVED,
    distrust,
    header_problem,
    length_problem,
    printable_url,
    read_record,
    sha256_of,
    state_of,
    write_record,
)

# How a source is called in llm_models, by the scheme of its URL.
SOURCE_KEYS = {"file": "path", "controller": "controller_path"}


class Refused(Exception):
    """A file that must not be installed; its text is the one line for the operator."""


def strings_in(value):
    """Yield the strings (not the keys) of a value out of JSON; a config.json names its model files so."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def source_path(url):
    """Return the path on the host that a file:// URL (str) stands for, an empty string for another URL."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" else ""


def look(path, sha256="", url="", record=True, verify="recorded", link=False):
    """Tell whether the wanted file is in place.

    Arguments:
        path (str): the model file.
        sha256 (str): 64 hexadecimal digits, ``none``, or empty when not known yet.
        url (str): where it comes from.
        record (bool): whether to write down what was found (False in check mode).
        verify (str): ``recorded`` reads a file only when no record can tell, ``always`` reads every file.
        link (bool): whether it is to be a link to its source.

    Returns a dict: present, reason, hashed, changed (a record was written, or would be).
    Errors: OSError when the file cannot be read or the record not be written.
    """

    def absent(reason, hashed=False):
        return {"present": False, "reason": reason, "hashed": hashed, "changed": False}

    state = state_of(path, sha256, url)
    if state == "absent":
        return absent("it is not there")
    if not os.path.isfile(path):
        raise OSError(f"{path} is not a file; move it away, or choose another name for the model file")
    problem = link_problem(path, url, link)
    if problem:
        return absent(problem)
    if state == "verified" and verify == "recorded":
        return {"present": True, "reason": "", "hashed": False, "changed": False}
    if state == "outdated" and sha256 in ("", WAIVED):
        return absent("its URL has changed")
    if state == "unverified" and not sha256:
        return absent("it has not been verified yet")
    problem = header_problem(path) or length_problem(path, strict=sha256 == WAIVED)
    actual = "" if problem else sha256_of(path)
    known = read_record(path)
    given = "" if sha256 == WAIVED else sha256.lower()
    expected = given or (known["sha256"] if known else actual)
    if not problem and actual != expected:
        problem = f"its sha256 is {actual}, expected {expected}"
    if problem:
        if state == "verified" and record:
            # The disk has damaged it behind size and time; the next look must not believe its record.
            distrust(path)
        return absent(problem, hashed=bool(actual))
    if state == "verified":
        return {"present": True, "reason": "", "hashed": True, "changed": False}
    if record:
        write_record(path, actual, url)
    return {"present": True, "reason": "", "hashed": True, "changed": True}


def link_problem(path, url, link):
    """Say why a file in place is not of the wanted kind, link or copy; empty when it is.

    Arguments:
        path (str): the model file, which exists.
        url (str): where it comes from.
        link (bool): whether it is to be a link to its source.

    Links that an operator has made to other places are left to the operator.
    """
    source = source_path(url)
    linked = os.readlink(path) if os.path.islink(path) else ""
    if link and linked != source:
        return f"it is not a link to {source}"
    if not link and linked and linked == source:
        return f"it is a link to {source}, and a copy is wanted"
    return ""


def check_download(source, sha256, url="", size=0, progress=None, name=""):
    """Return the sha256 of a download that may be installed.

    Arguments:
        source (str): the finished download.
        sha256 (str): 64 hexadecimal digits, or ``none``.
        url (str): where it came from.
        size (int): bytes that were announced, 0 for unknown.
        progress (callable): is told the bytes (int) read so far, after each block.
        name (str): of the model file, where the download has another one.

    Errors: Refused with one line that says what is wrong and what to do; OSError.
    """
    name = name or os.path.basename(source)
    origin = printable_url(url) or source
    key = SOURCE_KEYS.get(urlsplit(url).scheme, "url")
    problem = header_problem(source)
    if problem:
        raise Refused(
            f"{name}: what {origin} sent is not installed, because {problem}."
            f" Correct its {key} in llm_models."
        )
    actual_size = os.path.getsize(source)
    if size and actual_size != size:
        raise Refused(
            f"{name}: what {origin} sent is not installed, because it has {actual_size} bytes of"
            f" the announced {size}."
            " Run the play again; if it stays so, the source or a proxy on the way cuts it off."
        )
    # Where a sha256 vouches for the file, what it has behind its tensors is its maker's business.
    problem = length_problem(source, strict=sha256 == WAIVED)
    if problem:
        raise Refused(
            f"{name}: what {origin} sent is not installed, because {problem}."
            " Run the play again; if it stays so, it is damaged at its source:"
            f" correct its {key} in llm_models."
        )
    actual = sha256_of(source, progress)
    if sha256 != WAIVED and actual != sha256.lower():
        raise Refused(
            f"{name}: what {origin} sent is not installed: sha256 expected {sha256.lower()}, got"
            f" {actual}. Correct sha256 or {key} of the model in llm_models."
        )
    return actual


def install(source, path, sha256, url="", size=0, progress=None):
    """Move a checked download into place and record its verification.

    Arguments: as check_download; path (str) is where the file belongs, on the same filesystem.
    Returns its sha256.
    Errors: Refused (the download is removed, what is in place is not touched); OSError.
    """
    try:
        actual = check_download(source, sha256, url, size, progress, name=os.path.basename(path))
    except Refused:
        os.unlink(source)
        raise
    # The name must never stand for data that a power cut could still lose.
    _sync(source)
    _put(source, path, actual, url)
    return actual


def install_link(target, path, sha256, url="", size=0, progress=None):
    """Link a checked file that stays where it is, and record its verification.

    Arguments: as check_download; target (str) is the file, path (str) where the link belongs.
    Returns its sha256.
    Errors: Refused (neither the file nor what is in place is touched); OSError.
    """
    directory, name = os.path.split(path)
    actual = check_download(target, sha256, url, size, progress, name=name)
    temporary = os.path.join(directory, f".{name}.link")
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    _put(temporary, path, actual, url)
    return actual


def _put(source, path, sha256, url):
    """Give a verified file or link its final name (path, str), for good, and record its sha256."""
    os.replace(source, path)
    _sync(os.path.dirname(path))
    write_record(path, sha256, url)


def _sync(path):
    """Wait until a file or directory (path, str) is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
