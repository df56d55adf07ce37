"""What the modules know about the directory of model files: what is in place, and how a file gets there.

A file that is replaced under its own name stays below .previous, by the name of its sha256, as long as the
last good release of an instance was proved with it: a hard link, so that it takes no room besides its own.

Runs on the hosts: Python standard library only, 3.9 or later.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
from urllib.parse import unquote, urlsplit

from ansible.module_utils.gguf import (
    WAIVED,
    distrust,
    header_problem,
    is_unchanged,
    length_problem,
    printable_url,
    read_record,
    record_path,
    sha256_of,
    state_of,
    write_record,
)

# How a source is called in llm_models, by the scheme of its URL.
SOURCE_KEYS = {"file": "path", "controller": "controller_path"}
PREVIOUS = ".previous"
# What modules are told of the servers' last good releases, see proved_contents.
PROOFS_ARGUMENT = {
    "proofs": {"type": "list", "elements": "str", "default": ["/var/lib/llamacpp/*/good/proved.json"]}
}


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


def install(source, path, sha256, url="", size=0, progress=None, proofs=()):
    """Move a checked download into place and record its verification.

    Arguments: as check_download; path (str) is where the file belongs, on the same filesystem; proofs (list
    of str), see proved_contents.
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
    _put(source, path, actual, url, proofs)
    return actual


def install_link(target, path, sha256, url="", size=0, progress=None, proofs=()):
    """Link a checked file that stays where it is, and record its verification.

    Arguments: as check_download; target (str) is the file, path (str) where the link belongs; proofs (list
    of str), see proved_contents.
    Returns its sha256.
    Errors: Refused (neither the file nor what is in place is touched); OSError.
    """
    directory, name = os.path.split(path)
    actual = check_download(target, sha256, url, size, progress, name=name)
    temporary = os.path.join(directory, f".{name}.link")
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    _put(temporary, path, actual, url, proofs)
    return actual


def proved_contents(proofs):
    """Return the sha256 (a set) that servers were proved with, by the name of the model file.

    Arguments: proofs (list of str), patterns of the paths of proved.json of each instance's last good
    release.
    """
    found = {}
    for path in (path for pattern in proofs for path in glob.glob(pattern)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(path, encoding="utf-8") as file:
                models = json.load(file).get("models", {})
            for name, sha256 in models.items():
                found.setdefault(name, set()).add(sha256)
    return found


def held_path(directory, sha256):
    """Return where a content (sha256, str) is held that was replaced in a directory (str) of model files."""
    return os.path.join(directory, PREVIOUS, f"{sha256}.gguf")


def is_held(directory, sha256):
    """Whether a replaced content (sha256, str) is still in a directory (str) of model files."""
    return state_of(held_path(directory, sha256), sha256, "") == "verified"


def not_needed(directory, proofs):
    """Return the files (list of paths) that hold contents which no server needs to go back, records included.

    Arguments: directory (str) of the model files; proofs (list of str), see proved_contents.
    """
    needed = {
        sha256
        for name, contents in proved_contents(proofs).items()
        for sha256 in contents
        if state_of(os.path.join(directory, name), sha256, "") != "verified"
    }
    kept = {
        path
        for sha256 in needed
        for held in [held_path(directory, sha256)]
        for path in (held, record_path(held))
    }
    held = os.path.join(directory, PREVIOUS)
    there = sorted(os.listdir(held)) if os.path.isdir(held) else []
    return [path for path in (os.path.join(held, name) for name in there) if path not in kept]


def forget(directory, proofs):
    """Remove the contents that no server needs any more. Arguments: as not_needed. Errors: OSError."""
    for path in not_needed(directory, proofs):
        os.unlink(path)
    with contextlib.suppress(OSError):  # it is not empty, or not there
        os.rmdir(os.path.join(directory, PREVIOUS))


def bring_back(path, sha256, proofs):
    """Give a model file its earlier content again, which stays held until it is forgotten.

    Arguments: path (str) of the model file; sha256 (str) of the content; proofs (list of str), see
    proved_contents.
    Returns whether it was held and not in place. Errors: OSError, with what is in place untouched.
    """
    directory, name = os.path.split(path)
    if state_of(path, sha256, "") == "verified" or not is_held(directory, sha256):
        return False
    held = held_path(directory, sha256)
    # There, because what a kill leaves of it is forgotten with the rest.
    temporary = os.path.join(directory, PREVIOUS, f"{name}.link")
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.link(held, temporary, follow_symlinks=False)
    # A full disk may refuse the small files; the next run reads what has no record.
    with contextlib.suppress(OSError):
        _hold(path, proofs)
    os.replace(temporary, path)
    if os.path.lexists(temporary):  # where both were one file already
        os.unlink(temporary)
    _sync(directory)
    with contextlib.suppress(OSError):
        write_record(path, sha256, read_record(held)["url"])
    return True


def _hold(path, proofs):
    """Keep what a model file (path, str) has now, if a server was proved with it. Errors: OSError."""
    directory, name = os.path.split(path)
    record = read_record(path) if os.path.exists(path) else None
    if not is_unchanged(path, record) or record["sha256"] not in proved_contents(proofs).get(name, ()):
        return
    if is_held(directory, record["sha256"]):
        return
    held = held_path(directory, record["sha256"])
    os.makedirs(os.path.dirname(held), mode=0o700, exist_ok=True)
    if os.path.lexists(held):
        os.unlink(held)
    try:
        os.link(path, held, follow_symlinks=False)
    except OSError as error:
        # A file system without hard links: what is replaced there is gone.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return
    write_record(held, record["sha256"], record.get("url", ""))


def _put(source, path, sha256, url, proofs):
    """Give a verified file or link its final name (path, str), for good, and record its sha256."""
    _hold(path, proofs)
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
