"""Documentation of the options that every module has which asks an OpenAI-compatible server."""

from __future__ import annotations


class ModuleDocFragment:
    """Documents CLIENT_ARGUMENTS of plugins/module_utils/openai_api.py."""

    DOCUMENTATION = r"""
options:
  url:
    description: Base URL of the server, without C(/v1).
    type: str
    required: true
  api_key:
    description: Bearer token; empty when the server asks for none.
    type: str
    default: ""
  certificate:
    description:
      - PEM text, of which the first certificate must be the one that an C(https) server shows; the rest of
        the text is not looked at. Empty accepts any.
    type: str
    default: ""
  timeout:
    description: Seconds without a byte before a request counts as failed; covers loading a model.
    type: int
    default: 900
"""
