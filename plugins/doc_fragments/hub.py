"""Documentation of the options that every module has which asks the model hub."""

from __future__ import annotations


class ModuleDocFragment:
    """Documents HUB_ARGUMENTS of plugins/module_utils/sources.py."""

    DOCUMENTATION = r"""
options:
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
"""
