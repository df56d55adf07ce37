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
  require:
    description:
      - V(nothing) only reports. V(answer) fails when a source has a problem, V(sha256) also when no
        sha256 is announced.
    type: str
    choices: [nothing, answer, sha256]
    default: nothing
  label:
    description: What the message of a failure begins with, for example the name of a file.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for each answer.
    type: int
    default: 30
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

import re
import socket
import ssl
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gguf import printable_url
from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import open_url

MAX_REDIRECTS = 10
# Pre-signed and simple servers know GET only; the fetch itself will tell.
NO_HEAD = (405, 501)


def head(url, timeout):
    """Send one HEAD request and follow no redirect.

    Arguments: url (str), timeout (int, seconds).
    Returns (status, headers with case-insensitive get). Errors: OSError, ValueError.
    """
    try:
        response = open_url(
            url,
            method="HEAD",
            timeout=timeout,
            follow_redirects="none",
            headers={"Accept-Encoding": "identity"},
        )
    except HTTPError as error:
        return error.code, error.headers
    return response.status, response.headers


def status_problem(status):
    """Say what an HTTP status (int) means for the operator; empty for a good one."""
    if status in (401, 403):
        return (
            f"answers {status} (access refused): it wants a login or an accepted licence;"
            " take another source, or put the file into llm_models_dir by hand"
        )
    if status in (404, 410):
        return f"answers {status} (not found): correct the url"
    if status >= 500:
        return f"answers {status} (error of the server): try again later, or take another source"
    if status >= 400:
        return f"answers {status}: correct the url, or take another source"
    return ""


def connection_problem(error, timeout):
    """Say what a failed connection means. Arguments: the exception; timeout (int, seconds)."""
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        why = reason.verify_message
        return f"has a certificate that the host does not trust ({why}): set llm_ca_bundle"
    if isinstance(reason, socket.gaierror):
        return (
            "has a host name that this host cannot resolve:"
            " correct the url, the host's DNS or llm_proxy_environment"
        )
    if isinstance(reason, ConnectionRefusedError):
        return "refuses the connection: start that server, or correct the url or llm_proxy_environment"
    if isinstance(reason, (TimeoutError, socket.timeout)):  # two classes before Python 3.10
        return f"gives no answer within {timeout} s: check firewall, llm_proxy_environment and the url"
    return f"cannot be asked ({reason}): check the url, firewall and llm_proxy_environment"


def ask(url, hub_url, timeout, send=head):
    """Return what the source of one URL announces.

    Arguments:
        url (str): of a model file.
        hub_url (str): prefix of the URLs of the hub.
        timeout (int): seconds to wait for each answer.
        send (callable): sends one HEAD request, see head.

    Returns a dict: problem (str), size (int, bytes), sha256 (str), no_connection (bool).
    Source of the X-Linked headers: the hub's own client, file_download.py of huggingface_hub.
    """
    answer = {"problem": "", "size": 0, "sha256": "", "no_connection": False}
    hub = hub_url.rstrip("/") + "/"
    current = url
    for _hop in range(MAX_REDIRECTS):
        try:
            status, headers = send(current, timeout)
        except (OSError, ValueError, UrlsConnectionError) as error:
            answer.update(problem=connection_problem(error, timeout), no_connection=True)
            return answer
        if url.startswith(hub) and current.startswith(hub):
            etag = re.fullmatch(r'(?:W/)?"?([0-9a-fA-F]{64})"?', headers.get("X-Linked-Etag") or "")
            if etag:
                # The hub itself vouches for the file; what it redirects to may take GET only.
                answer["sha256"] = etag.group(1).lower()
                answer["size"] = _bytes(headers.get("X-Linked-Size"))
                return answer
        location = headers.get("Location")
        if 300 <= status < 400 and location:
            current = urljoin(current, location)
            continue
        if status in NO_HEAD:
            return answer
        answer["problem"] = status_problem(status)
        content_type = (headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if not answer["problem"] and content_type in ("text/html", "application/xhtml+xml"):
            answer["problem"] = (
                "answers a web page, not a GGUF file: correct the url (on the hub, /resolve/"
                " instead of /blob/)"
            )
        if not answer["problem"]:
            answer["size"] = _bytes(headers.get("Content-Length"))
        return answer
    answer["problem"] = f"redirects more than {MAX_REDIRECTS} times: correct the url"
    return answer


def _bytes(text):
    """Return a header's number of bytes, 0 when there is none."""
    return int(text) if text and text.isdigit() else 0


def ask_all(urls, hub_url, timeout, send=head):
    """Return a dict of the answers by URL; a server that cannot be reached is asked only once.

    Arguments: urls (list of str); the rest as ask.
    """
    sources = {}
    unreachable = {}
    for url in dict.fromkeys(urls):
        server = urlsplit(url).netloc
        problem = unreachable.get(server)
        if problem is None:
            answer = ask(url, hub_url, timeout, send)
            if answer.pop("no_connection"):
                unreachable[server] = answer["problem"]
        else:
            answer = {"problem": problem, "size": 0, "sha256": ""}
        if answer["problem"]:
            answer["problem"] = f"{printable_url(url)} {answer['problem']}"
        sources[url] = answer
    return sources


def failures(sources, require):
    """Return a line for each source that does not give what is required.

    Arguments: sources (dict, see ask_all), require (str: nothing, answer or sha256).
    """
    if require == "nothing":
        return []
    lines = [source["problem"] for source in sources.values() if source["problem"]]
    if require == "sha256":
        lines += [
            f"{printable_url(url)} announces no sha256; write it into llm_models (sha256sum FILE),"
            " or `sha256: none` to waive the check"
            for url, source in sources.items()
            if not source["problem"] and not source["sha256"]
        ]
    return lines


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "hub_url": {"type": "str", "default": "https://huggingface.co"},
            "require": {
                "type": "str",
                "choices": ["nothing", "answer", "sha256"],
                "default": "nothing",
            },
            "label": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    sources = ask_all(module.params["urls"], module.params["hub_url"], module.params["timeout"])
    lines = failures(sources, module.params["require"])
    if lines:
        label = module.params["label"]
        module.fail_json(
            msg="\n".join(f"{label}: {line}" if label else line for line in lines), sources=sources
        )
    module.exit_json(changed=False, sources=sources)


if __name__ == "__main__":
    main()
