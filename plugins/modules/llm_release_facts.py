#!/usr/bin/python
"""Module llm_release_facts: what instances run, what they ran before, and which are there besides."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_release_facts
short_description: Tells what the instances on a host run, and which releases they have had
description:
  - Reads the releases that the module llm_release keeps, Docker and systemd. Changes nothing.
options:
  names:
    description: Names of the instances to look at; those that are on the host besides are told in RV(others).
    type: list
    elements: str
    default: []
  state_dir:
    description: Directory of the releases.
    type: path
    default: /var/lib/llamacpp
  api_key:
    description: Key that clients are to send; empty for none.
    type: str
    default: ""
  docker_socket:
    description: Socket on which Docker answers.
    type: path
    default: /run/docker.sock
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Instances are looked at
  llm_release_facts:
    names: [llamacpp]
  register: found
"""

RETURN = r"""
instances:
  description: >-
    By name. running (label, image, id, started of its container; empty when none runs), key_is_wanted,
    good (record of the last release that was proved, with proved, the time), is_in_place (the files on
    the host are its files), models_are_the_same (as when it was proved), is_active, is_enabled, trying
    (what a run was cut off in), releases.
  type: dict
  returned: always
others:
  description: Names of the instances that have releases on this host and are not among O(names).
  type: list
  elements: str
  returned: always
ports:
  description: Ports of all releases on this host, of whichever instance; each may be put back.
  type: list
  elements: int
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.releases import Instance, kept_ports


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "state_dir": {"type": "path", "default": "/var/lib/llamacpp"},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "docker_socket": {"type": "path", "default": "/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    state_dir, names = module.params["state_dir"], module.params["names"]
    instances = {}
    for name in names:
        instance = Instance(name, state_dir, module.run_command, module.params["docker_socket"])
        instances[name] = instance.facts(module.params["api_key"])
    entries = os.scandir(state_dir) if os.path.isdir(state_dir) else []
    known = sorted(entry.name for entry in entries if entry.is_dir())
    module.exit_json(
        changed=False,
        instances=instances,
        others=[name for name in known if name not in names],
        ports=kept_ports(state_dir),
    )


if __name__ == "__main__":
    main()
