#!/usr/bin/python
"""Module gguf_file: a model file is in place and verified, or is put there from a download."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_file
short_description: Verifies a model file in place, or puts a downloaded one there
description:
  - Without O(source), tells whether the file is in place and is the wanted one. A file that was
    verified before and has not changed since (size, modification time, inode) is not read again;
    any other is read once and its sha256 compared.
  - With O(source), checks a finished download (GGUF header, size, sha256) and moves it into place
    in one step. A download with wrong content is removed, and what is in place stays as it is.
  - The result of a verification is recorded beside the file as C(.FILE.verified).
options:
  path:
    description: The model file.
    type: path
    required: true
  source:
    description: A finished download on the same filesystem. In check mode it need not exist.
    type: path
  url:
    description: Where the file comes from; for messages, and, where no sha256 is given, the
      identity of the file.
    type: str
    default: ""
  sha256:
    description:
      - 64 hexadecimal digits; V(none) takes the file as it is and records its sha256; empty means
        not known yet, so that only an earlier verification counts.
    type: str
    default: ""
  size:
    description: Size in bytes that the source announced; 0 means unknown.
    type: int
    default: 0
extends_documentation_fragment: [ansible.builtin.files]
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Model file is looked at
  gguf_file:
    path: /home/llm/llamacpp/model/vicuna-13b-v1.5.Q8_0.gguf
    sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  register: model
"""

RETURN = r"""
present:
  description: Whether the file is in place and is the wanted one.
  type: bool
  returned: always
reason:
  description: Why it is not; empty when it is.
  type: str
  returned: always
hashed:
  description: Whether a whole file was read to compute its sha256.
  type: bool
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gguf import (
    WAIVED,
    header_problem,
    printable_url,
    read_record,
    sha256_of,
    state_of,
    write_record,
)


class Refused(Exception):
    """A download that must not be installed; its text is the one line for the operator."""


def look(path, sha256="", url="", record=True):
    """Tell whether the wanted file is in place, reading it only when no record can tell.

    Arguments:
        path (str): the model file.
        sha256 (str): 64 hexadecimal digits, ``none``, or empty when not known yet.
        url (str): where it comes from.
        record (bool): whether to write the record of a verification (False in check mode).

    Returns a dict: present, reason, hashed, changed (a record was written, or would be).
    Errors: OSError when the file cannot be read or the record not be written.
    """
    state = state_of(path, sha256, url)
    if state == "verified":
        return {"present": True, "reason": "", "hashed": False, "changed": False}

    def absent(reason, hashed=False):
        return {"present": False, "reason": reason, "hashed": hashed, "changed": False}

    if state == "absent":
        return absent("it is not there")
    if not os.path.isfile(path):
        raise OSError(f"{path} is not a file; move it away, or choose another name for the model file")
    if not sha256:
        return absent("its URL has changed" if state == "outdated" else "it has not been verified yet")
    if state == "outdated" and sha256 == WAIVED:
        return absent("its URL has changed")
    problem = header_problem(path)
    if problem:
        return absent(problem)
    known = read_record(path)
    actual = sha256_of(path)
    unchecked = known["sha256"] if known else actual
    expected = unchecked if sha256 == WAIVED else sha256.lower()
    if actual != expected:
        return absent(f"its sha256 is {actual}, expected {expected}", hashed=True)
    if record:
        write_record(path, actual, url)
    return {"present": True, "reason": "", "hashed": True, "changed": True}


def check_download(source, sha256, url="", size=0):
    """Return the sha256 of a download that may be installed.

    Arguments:
        source (str): the finished download.
        sha256 (str): 64 hexadecimal digits, or ``none``.
        url (str): where it came from.
        size (int): bytes that were announced, 0 for unknown.

    Errors: Refused with one line that says what is wrong and what to do; OSError.
    """
    name = os.path.basename(source)
    origin = printable_url(url) or source
    problem = header_problem(source)
    if problem:
        raise Refused(
            f"{name}: what {origin} sent is not installed, because {problem}. Correct its url in llm_models."
        )
    actual_size = os.path.getsize(source)
    if size and actual_size != size:
        raise Refused(
            f"{name}: what {origin} sent is not installed, because it has {actual_size} bytes of"
            f" the announced {size}."
            " Run the play again; if it stays so, the source or a proxy on the way cuts it off."
        )
    actual = sha256_of(source)
    if sha256 != WAIVED and actual != sha256.lower():
        raise Refused(
            f"{name}: what {origin} sent is not installed: sha256 expected {sha256.lower()}, got"
            f" {actual}."
            " Correct sha256 or url of the model in llm_models."
        )
    return actual


def install(source, path, sha256, url="", size=0):
    """Move a checked download into place and record its verification.

    Arguments: as check_download; path (str) is where the file belongs, on the same filesystem.
    Errors: Refused (the download is removed, what is in place is not touched); OSError.
    """
    try:
        actual = check_download(source, sha256, url, size)
    except Refused:
        os.unlink(source)
        raise
    # The name must never stand for data that a power cut could still lose.
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, path)
    write_record(path, actual, url)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "source": {"type": "path"},
            "url": {"type": "str", "default": ""},
            "sha256": {"type": "str", "default": ""},
            "size": {"type": "int", "default": 0},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    path, source, url, sha256, size = (
        module.params[name] for name in ("path", "source", "url", "sha256", "size")
    )
    attributes = module.load_file_common_arguments(module.params)
    try:
        if source is None:
            result = look(path, sha256, url, record=not module.check_mode)
        else:
            if not sha256:
                module.fail_json(
                    msg=f"{os.path.basename(path)}: no sha256 is known for {printable_url(url)};"
                    " give sha256 in llm_models (sha256sum FILE), or 'sha256: none' to waive it"
                )
            result = {"present": True, "reason": "", "hashed": True, "changed": True}
            if module.check_mode:
                result["msg"] = f"{path} would be fetched from {printable_url(url)}"
                module.exit_json(**result)
            # Before the move: the file never has another owner or mode at its place.
            module.set_fs_attributes_if_different(dict(attributes, path=source), False)
            install(source, path, sha256, url, size)
    except (Refused, OSError) as error:
        module.fail_json(msg=str(error))
    if result["present"]:
        result["changed"] = module.set_fs_attributes_if_different(attributes, result["changed"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
