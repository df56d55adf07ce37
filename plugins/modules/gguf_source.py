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
  hub_url:
    description: Address of the model hub, the only source whose announced sha256
      (C(X-Linked-Etag)) is believed.
    type: str
    default: https://huggingface.co
  mirror_url:
    description: Address of a mirror that is asked in place of the hub, and believed like it; empty for none.
    type: str
    default: ""
  token:
    description: Bearer token for gated repositories; only the hub, or its mirror, is told.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for each answer.
    type: int
    default: 30
  attempts:
    description: How often a server is asked that is overloaded (429, 5xx); it says how long to wait, or
      2, 4, … seconds.
    type: int
    default: 3
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
from ansible.module_utils.sources import HUB_URL, Hub, ask_all


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "hub_url": {"type": "str", "default": HUB_URL},
            "mirror_url": {"type": "str", "default": ""},
            "token": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "int", "default": 30},
            "attempts": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    hub = Hub(wanted["hub_url"], wanted["mirror_url"], wanted["token"])
    answers = ask_all(wanted["urls"], hub, wanted["timeout"], wanted["attempts"])
    # Addresses behind redirects may hold signatures; nobody here needs them.
    shown = ("problem", "size", "sha256")
    module.exit_json(
        changed=False,
        sources={url: {key: answer[key] for key in shown} for url, answer in answers.items()},
    )


if __name__ == "__main__":
    main()
