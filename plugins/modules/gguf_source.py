#!/usr/bin/python
"""Module gguf_source: what the sources of model files announce, asked from the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_source
short_description: Asks the sources of model files for existence, size and sha256
description:
  - Sends a HEAD request to each URL and follows redirects. Fetches and changes nothing.
  - Proxies and a private CA come from the environment (C(https_proxy), C(SSL_CERT_FILE)).
options:
  urls:
    description: URLs of model files.
    type: list
    elements: str
    required: true
  attempts:
    description: How often a server is asked that is overloaded (429, 5xx); it says how long to wait, or
      2, 4, … seconds.
    type: int
    default: 3
extends_documentation_fragment: [hub]
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Model sources are asked
  gguf_source:
    urls: ["https://models.example.com/vicuna-13b-v1.5.Q8_0.gguf"]
  register: announced
"""

RETURN = r"""
sources:
  description: >-
    Per URL a dict of C(problem) (what is wrong, empty when nothing is), C(size) (bytes, 0 when not
    announced) and C(sha256) (what the hub announces, empty elsewhere).
  type: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.sources import HUB_ARGUMENTS, Hub, ask_all


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            **HUB_ARGUMENTS,
            "attempts": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    hub = Hub.of(wanted)
    answers = ask_all(wanted["urls"], hub, wanted["timeout"], wanted["attempts"])
    # Addresses behind redirects may hold signatures; nobody here needs them.
    shown = ("problem", "size", "sha256")
    module.exit_json(
        changed=False,
        sources={url: {key: answer[key] for key in shown} for url, answer in answers.items()},
    )


if __name__ == "__main__":
    main()
