#!/usr/bin/python
"""Module gguf_store: which model files are in place and verified, and which are missing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_store
short_description: Tells which model files are in place and verified, and which are missing
description:
  - Looks at all files of the catalogue at once. A file that was verified before and has not changed
    since (size, modification time, inode) is not read again; any other is read once, its header,
    length and sha256 compared with what is wanted.
  - The result of a verification is recorded beside the file as C(.FILE.verified).
  - Fetches nothing. Sets owner, group and mode of what is in place; a linked file keeps its own.
options:
  directory:
    description: Directory of the model files.
    type: path
    required: true
  files:
    description:
      - The wanted files, as the filter C(model_files) gives them. Used are C(file), C(url), C(link) and
        C(sha256) (64 hexadecimal digits; V(none) takes the file as it is and records its sha256; empty
        means not known yet, so that only an earlier verification counts).
    type: list
    elements: dict
    required: true
  verify:
    description: V(recorded) reads a file only when no record can tell; V(always) reads every file,
      which also finds what a disk has damaged.
    type: str
    choices: [recorded, always]
    default: recorded
extends_documentation_fragment: [ansible.builtin.files]
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Model files are looked at
  gguf_store:
    directory: /home/llm/llamacpp/model
    files: "{{ llm_models | model_files }}"
    mode: "0644"
  register: store
"""

RETURN = r"""
missing:
  description: The given entries of the files that are not in place, each with C(reason).
  type: list
  elements: dict
  returned: always
present:
  description: The given entries of the files that are in place.
  type: list
  elements: dict
  returned: always
hashed:
  description: Names of the files that were read to compute their sha256.
  type: list
  elements: str
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.store import look


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True},
            "verify": {"type": "str", "choices": ["recorded", "always"], "default": "recorded"},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    result = {"missing": [], "present": [], "hashed": [], "changed": False}
    problems = []
    for entry in module.params["files"]:
        path = os.path.join(module.params["directory"], entry["file"])
        try:
            found = look(
                path,
                entry.get("sha256") or "",
                entry.get("url") or "",
                record=not module.check_mode,
                verify=module.params["verify"],
                link=module.boolean(entry.get("link") or False),
            )
        except OSError as error:
            problems.append(str(error))
            continue
        if found["hashed"]:
            result["hashed"].append(entry["file"])
        if not found["present"]:
            result["missing"].append(dict(entry, reason=found["reason"]))
            continue
        result["present"].append(entry)
        if not os.path.islink(path):
            attributes = module.load_file_common_arguments(module.params, path)
            found["changed"] = module.set_fs_attributes_if_different(attributes, found["changed"])
        result["changed"] = result["changed"] or found["changed"]
    if problems:
        module.fail_json(msg="\n".join(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
