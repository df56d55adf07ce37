#!/usr/bin/python
"""Module llm_release: an instance runs a new release that has proved itself, or goes on with the old one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_release
short_description: Changes an instance to another release, or leaves it with the one that serves
description:
  - A release is a directory with the files of one deployment (config.json, the unit, the API key, the
    certificate and its private key) and with C(release.json), the record of what it is, below
    O(state_dir)C(/INSTANCE/releases).
  - O(state=tried) puts the files in place, has systemd restart the instance where its container is not
    that of the release, waits until it is ready, and asks each model a real question. If anything of
    this fails, the files of the last good release are put back, its models are asked, and the module
    fails with the reason, the log and what serves now. All of that happens in this one process on the
    host, so that a play which is killed meanwhile does not leave it half done.
  - O(state=good) notes that the release is the last good one from now on. O(state=restored) goes back
    from a release that was tried and is not wanted for a reason that others have found; it always fails,
    with that reason.
  - O(state=absent) removes an instance with its releases. Model files and images stay.
  - One run at a time changes an instance; another one fails at once, having touched nothing.
  - In check mode it tells only whether something would be done.
options:
  name:
    description: Name of the instance.
    type: str
    required: true
  state:
    description: See above.
    type: str
    choices: [tried, good, restored, absent]
    default: tried
  release:
    description: Id of the release; not for O(state=absent).
    type: str
    default: ""
  with_its_models:
    description: For O(state=tried), whether model files that were replaced since the release was proved get
      back what they had then, where that is still held. When a release is put back because another one has
      failed, they do.
    type: bool
    default: false
  instead_of:
    description: For O(state=tried), names of instances that are to go away. Those that have the port of the
      release are stopped before it is started, start again if it does not serve, and are removed by
      O(state=good).
    type: list
    elements: str
    default: []
  why:
    description: Why the release is not wanted; for O(state=restored).
    type: str
    default: ""
  keep:
    description: How many proved releases are kept; the last two always are.
    type: int
    default: 10
  timeout:
    description: Seconds that a model may take to be loaded and to answer.
    type: int
    default: 900
  state_dir:
    description: Directory of the releases.
    type: path
    default: /var/lib/llamacpp
  docker_socket:
    description: Socket on which Docker answers.
    type: path
    default: /run/docker.sock
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Candidate serves
  llm_release:
    name: llamacpp
    release: 2026-11-23T02-00-00Z-1a2b3c4d

- name: Candidate is the last good release
  llm_release:
    name: llamacpp
    release: 2026-11-23T02-00-00Z-1a2b3c4d
    state: good
"""

RETURN = r"""
restarted:
  description: Whether the container was started anew.
  type: bool
  returned: state is tried
down_s:
  description: Seconds from the stop of the old container until the new one was ready; 0 without a restart.
  type: float
  returned: state is tried
probed:
  description: Seconds that each model took to answer, by alias; a model that had to be loaded took longer.
  type: dict
  returned: state is tried
"""

import os
import signal

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.releases import Instance, Problem


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["tried", "good", "restored", "absent"],
                "default": "tried",
            },
            "release": {"type": "str", "default": ""},
            "with_its_models": {"type": "bool", "default": False},
            "instead_of": {"type": "list", "elements": "str", "default": []},
            "why": {"type": "str", "default": ""},
            "keep": {"type": "int", "default": 10},
            "timeout": {"type": "int", "default": 900},
            "state_dir": {"type": "path", "default": "/var/lib/llamacpp"},
            "docker_socket": {"type": "path", "default": "/run/docker.sock"},
        },
        required_if=[("state", value, ["release"]) for value in ("tried", "good", "restored")],
        supports_check_mode=True,
    )
    wanted = module.params
    # Whoever started this may go away; what has begun here is brought to its end.
    for ending in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    os.umask(0o077)  # among the files are the API key and a private key
    instance = Instance(
        wanted["name"], wanted["state_dir"], module.run_command, wanted["docker_socket"], wanted["timeout"]
    )
    if module.check_mode:
        module.exit_json(changed=wanted["state"] != "absent" or instance.is_there(), restarted=False)
    try:
        if wanted["state"] == "tried":
            found = instance.try_release(wanted["release"], wanted["with_its_models"], wanted["instead_of"])
            module.exit_json(changed=True, **found)
        if wanted["state"] == "restored":
            instance.restore(wanted["release"], wanted["why"])
        if wanted["state"] == "absent":
            module.exit_json(changed=instance.remove())
        module.exit_json(changed=instance.accept(wanted["release"], wanted["keep"]))
    except (Problem, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
