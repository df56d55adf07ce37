#!/usr/bin/python
"""Module gguf_prune: model files that nothing needs any more are gone from the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_prune
short_description: Removes model files that nothing needs any more
description:
  - Removes the files C(*.gguf) of a directory (not of those below it) that are not listed in
    O(keep), that no configuration of an instance names, and that no process has open or mapped.
    With a file goes the record of its verification. Of a link only the link is removed.
  - Removes what C(.partial) holds of downloads of such files, and what C(.previous) holds of replaced files,
    unless the last good release of an instance was proved with it.
  - Touches nothing else. If it cannot be told what is in use, nothing is removed.
options:
  directory:
    description: Directory of the model files.
    type: path
    required: true
  keep:
    description: Names of the files that stay. Of a split model the first part is enough.
    type: list
    elements: str
    required: true
  configs:
    description: Patterns of the paths of C(config.json) files. What they name stays, in whatever setting.
    type: list
    elements: str
    default: [/home/llm/*/config.json]
  proofs:
    description: Patterns of the paths of C(proved.json) of each instance's last good release.
    type: list
    elements: str
    default: [/var/lib/llamacpp/*/good/proved.json]
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Model files that nothing needs are gone
  gguf_prune:
    directory: /home/llm/llamacpp/model
    keep: "{{ llm_models | model_files | map(attribute='file') }}"
"""

RETURN = r"""
removed:
  description: What was removed, or would be in check mode; a list of dicts of C(file) (relative to
    the directory) and C(bytes) (its size, 0 for a link).
  type: list
  elements: dict
  returned: always
kept_in_use:
  description: Names of the files that are not in O(keep), but in use.
  type: list
  elements: str
  returned: always
used_by:
  description: By name, which configuration or process uses each of them.
  type: dict
  returned: always
"""

import contextlib
import glob
import json
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gguf import record_path
from ansible.module_utils.store import PREVIOUS, PROOFS_ARGUMENT, not_needed, strings_in

PROC = "/proc"
PARTIAL = ".partial"
PART = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)")
# A record whose file has been removed by hand.
RECORD = re.compile(r"\.(.+\.gguf)\.verified")
# What a download has beside its file: aria2's own notes, and what its source announced.
COMPANION = re.compile(r"(?<=\.gguf)(\.aria2|\.source)$")


class Unsure(Exception):
    """It cannot be told what is in use; its text is the one line for the operator."""


def names_of(path):
    """Return the names (list) that stand for a file (path, str): its own, that of a model's first part."""
    name = os.path.basename(path)
    return [name, PART.sub(r"-00001-of-\1", name)]


def named_in(patterns):
    """Return which configuration names a file: a dict of paths of configurations by file name.

    Arguments: patterns (list of str) of paths. Errors: Unsure.
    """
    names = {}
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern)):
        try:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
        except (OSError, ValueError) as error:
            raise Unsure(
                f"{path} cannot be read as JSON ({error}), so that nobody knows what it uses; no model file"
                " is removed. Deploy its instance again, or remove it"
            ) from error
        for text in strings_in(config):
            names.setdefault(os.path.basename(text), path)
    return names


def users_of(paths, proc=PROC):
    """Return which process has a file open or mapped: a dict by path, without the unused ones.

    Arguments: paths (list of str), proc (str) where the kernel shows its processes. Errors: Unsure.
    """
    wanted = {}
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:  # a link to nowhere
            continue
        for where in (status.st_dev, os.path.basename(os.path.realpath(path))):
            wanted.setdefault((where, status.st_ino), set()).add(path)
    users = {}
    for process in filter(str.isdigit, os.listdir(proc)):
        try:
            for key in wanted.keys() & set(_open_in(os.path.join(proc, process))):
                for path in wanted[key]:
                    users[path] = f"process {process}"
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except PermissionError as error:
            raise Unsure(
                f"whether process {process} uses a model file cannot be told ({error}); no model file is"
                " removed. Become root"
            ) from error
    return users


def _open_in(process):
    """Yield (device, inode) and (name, inode) of what a process (path, str) has open or mapped.

    The name is for file systems (btrfs, overlays) whose device numbers in maps are not those of stat.
    Source: proc_pid_maps(5).
    """
    with open(os.path.join(process, "maps"), "rb") as maps:
        for line in maps:
            _addresses, _mode, _offset, device, inode, *path = line.decode(errors="replace").split(None, 5)
            if path:
                major, minor = (int(number, 16) for number in device.split(":"))
                yield os.makedev(major, minor), int(inode)
                yield os.path.basename(path[0].rstrip("\n")), int(inode)
    descriptors = os.path.join(process, "fd")
    for descriptor in os.listdir(descriptors):
        try:
            status = os.stat(os.path.join(descriptors, descriptor))
        except FileNotFoundError:  # it has been closed
            continue
        yield status.st_dev, status.st_ino


def files_in(directory, proofs):
    """Return what may be removed: a dict by name, relative to the directory, of the paths that belong to it.

    Arguments: directory (str), one that is not there is empty; proofs (list of str).
    """
    found = {}
    for entry in _files(directory):
        if entry.name.endswith(".gguf"):
            found[entry.name] = [entry.path]
            if os.path.exists(record_path(entry.path)):
                found[entry.name].append(record_path(entry.path))
    for entry in _files(directory):
        record = RECORD.fullmatch(entry.name)
        if record and not os.path.lexists(os.path.join(directory, record.group(1))):
            found[record.group(1)] = [entry.path]
    for entry in _files(os.path.join(directory, PARTIAL)):
        name = COMPANION.sub("", entry.name)
        if name.endswith(".gguf"):
            found.setdefault(os.path.join(PARTIAL, name), []).append(entry.path)
    for path in not_needed(directory, proofs):
        record = RECORD.fullmatch(os.path.basename(path))
        name = record.group(1) if record else os.path.basename(path)
        # Records come first there, and the file is to be the first of them here.
        found.setdefault(os.path.join(PREVIOUS, name), []).insert(0, path)
    return found


def _files(directory):
    """Return the entries of files and links in a directory (path, str)."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    return [entry for entry in entries if entry.is_symlink() or entry.is_file()]


def unused(directory, keep, configs, proc=PROC, proofs=()):
    """Return (files, used): what may go, see files_in, and by name who uses what else is not to be kept.

    Arguments: directory, proc (str), keep, configs, proofs (list of str). Errors: Unsure, OSError.
    """
    configured = named_in(configs)
    files = {
        name: paths
        for name, paths in files_in(directory, proofs).items()
        if not set(names_of(name)) & set(keep)
    }
    users = users_of([path for paths in files.values() for path in paths], proc)
    used = {}
    for name, paths in files.items():
        found = [configured.get(known) for known in names_of(name)] + [users.get(path) for path in paths]
        if any(found):
            used[name] = next(filter(None, found))
    return {name: paths for name, paths in files.items() if name not in used}, used


def size_of(path):
    """Return the size (int, bytes) of a file; 0 for a link."""
    return 0 if os.path.islink(path) else os.path.getsize(path)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "keep": {"type": "list", "elements": "str", "required": True},
            "configs": {"type": "list", "elements": "str", "default": ["/home/llm/*/config.json"]},
            **PROOFS_ARGUMENT,
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        files, used = unused(wanted["directory"], wanted["keep"], wanted["configs"], proofs=wanted["proofs"])
        removed = [{"file": name, "bytes": size_of(paths[0])} for name, paths in files.items()]
        if not module.check_mode:
            for paths in files.values():
                for path in paths:
                    os.unlink(path)
            with contextlib.suppress(OSError):  # it is not empty, or not there
                os.rmdir(os.path.join(wanted["directory"], PREVIOUS))
    except (Unsure, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(removed), removed=removed, kept_in_use=sorted(used), used_by=used)


if __name__ == "__main__":
    main()
