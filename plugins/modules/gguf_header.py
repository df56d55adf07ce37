#!/usr/bin/python
"""Module gguf_header: what model files say of their sizes, before they are fetched."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_header
short_description: Reads the GGUF headers of model files, on the host or at their source
description:
  - A file that is in place is read there, one with a path on the host at that path; of any other the
    first bytes are fetched from its URL (HTTP Range), only as far as its header reaches. Changes nothing.
  - Proxies and a private CA come from the environment (C(https_proxy), C(SSL_CERT_FILE)).
options:
  files:
    description: >-
      Files as the filter model_files lists them; C(file), C(part_of), C(url) and C(sha256) of each are
      used.
    type: list
    elements: dict
    required: true
  models_dir:
    description: Directory of the model files.
    type: str
    required: true
extends_documentation_fragment: [hub]
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Headers of the models are read
  gguf_header:
    files:
      - file: vicuna-13b-v1.5.Q8_0.gguf
        part_of: vicuna-13b-v1.5.Q8_0.gguf
        url: https://models.example.com/vicuna-13b-v1.5.Q8_0.gguf
    models_dir: /home/llm/llamacpp/model
  register: found
"""

RETURN = r"""
headers:
  description: >-
    Per C(part_of), which is the C(file) of a model, a dict of C(parts) (one per file of the model, each
    with C(header), the GGUF header without the vocabulary, compressed by zlib, in base64, and C(size), the
    file's bytes) and C(problem) (why there is none, empty when there is).
  type: dict
  returned: always
"""

import base64
import os
import re
import zlib
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gguf import MAX_HEADER_BYTES, header_problem, printable_url, sizing_header, state_of
from ansible.module_utils.sources import HUB_ARGUMENTS, Hub, ask
from ansible.module_utils.store import source_path
from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import open_url

# Most headers are complete in the first request.
FIRST_BYTES = 1 << 20
BLOCK_BYTES = 1 << 18
NO_SIZE = "does not announce the size of the file"


def get(url, headers, timeout, start, end):
    """Ask for the bytes start … end (inclusive) of a URL (str), with headers (dict); timeout in seconds.

    Returns the response. Errors: OSError (HTTPError for a status of 400 and above), ValueError.
    """
    return open_url(
        url,
        timeout=timeout,
        follow_redirects="all",
        decompress=False,
        headers={"Range": f"bytes={start}-{end}", "Accept-Encoding": "identity", **headers},
    )


class Remote:
    """A file at a URL, read from its beginning in growing ranges.

    Arguments: url (str) of the source, headers (dict) to send, timeout (int, seconds). ``size`` is
    known once it was read from.
    """

    def __init__(self, url, headers, timeout):
        self.size = 0
        self._url = url
        self._headers = headers
        self._timeout = timeout
        self._response = None
        self._got = 0

    def read(self):
        """Return the next bytes, none at the end of the file. Errors: OSError, ValueError."""
        block = self._response.read(BLOCK_BYTES) if self._response else b""
        if not block and (self._response is None or self._got < self.size):
            self._next_range()
            block = self._response.read(BLOCK_BYTES)
        self._got += len(block)
        return block

    def _next_range(self):
        """Ask for as many bytes again as there are already. Errors: OSError, ValueError."""
        self.close()
        length = self._got or FIRST_BYTES
        self._response = get(self._url, self._headers, self._timeout, self._got, self._got + length - 1)
        headers = self._response.headers
        if self._response.status == 206:
            answer = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
            start, size = answer.groups() if answer else (-1, 0)
        else:
            # It does not know ranges: what is not needed is left unread.
            start, size = 0, headers.get("Content-Length") or 0
        if int(start) != self._got:
            raise ValueError("answers other bytes than it was asked for")
        if size == "*":
            raise ValueError(NO_SIZE)
        self.size = int(size)

    def close(self):
        """Hang up."""
        if self._response is not None:
            self._response.close()


def from_url(url, hub, timeout):
    """Return a dict of header and size of the model file at a URL.

    Arguments: url (str), hub (Hub), timeout (int, seconds). Errors: ValueError with what is wrong.
    """
    where = printable_url(url)
    address = url
    if hub.has(url):
        # Redirects are followed here, so that what the hub redirects to never sees the token.
        answer = ask(url, hub, timeout)
        if answer["problem"]:
            raise ValueError(f"{where} {answer['problem']}")
        address = answer["address"]
    remote = Remote(address, hub.headers(address), timeout)
    try:
        header = sizing_header(remote.read, MAX_HEADER_BYTES)
    except HTTPError as error:
        raise ValueError(f"{where} answers {error.code} to a request for its first bytes") from error
    except (OSError, HTTPException, UrlsConnectionError) as error:
        raise ValueError(f"{where} cannot be read ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    finally:
        remote.close()
    if not remote.size:
        raise ValueError(f"{where}: {NO_SIZE}")
    return packed(header, remote.size)


def from_file(path):
    """Return a dict of header and size of a model file on this host.

    Errors: ValueError with what is wrong.
    """
    try:
        with open(path, "rb") as file:
            header = sizing_header(lambda: file.read(BLOCK_BYTES), MAX_HEADER_BYTES)
        return packed(header, os.path.getsize(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def packed(header, size):
    """Return a dict as JSON can carry it, of a header (bytes) and the file's size (int, bytes)."""
    return {"header": base64.b64encode(zlib.compress(header, 9)).decode("ascii"), "size": size}


def read(entry, models_dir, hub, timeout):
    """Return a dict of header and size of one file, from where it can be read.

    Arguments:
        entry (dict): of the filter model_files.
        models_dir (str): directory of the model files.
        hub (Hub): the model hub.
        timeout (int): seconds to wait for each answer of its source.

    Errors: ValueError with what is wrong; OSError.
    """
    path = os.path.join(models_dir, entry["file"])
    # What another file has to make way for is not what will be loaded.
    if state_of(path, entry["sha256"], entry["url"]) in ("verified", "unverified") and not header_problem(
        path
    ):
        return from_file(path)
    scheme = urlsplit(entry["url"]).scheme
    if scheme == "file":
        return from_file(source_path(entry["url"]))
    if scheme == "controller":
        raise ValueError(f"size unknown until {entry['file']} is on the host")
    return from_url(entry["url"], hub, timeout)


def read_all(files, models_dir, hub, timeout):
    """Return what is known of the sizes of models, see RETURN.

    Arguments: files (list of dict); the rest as read.
    """
    headers = {}
    for entry in files:
        found = headers.setdefault(entry["part_of"], {"parts": [], "problem": ""})
        if found["problem"]:
            continue
        try:
            found["parts"].append(read(entry, models_dir, hub, timeout))
        except (OSError, ValueError) as error:
            found.update(parts=[], problem=str(error))
    return headers


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True},
            "models_dir": {"type": "str", "required": True},
            **HUB_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    wanted = module.params
    hub = Hub.of(wanted)
    headers = read_all(wanted["files"], wanted["models_dir"], hub, wanted["timeout"])
    module.exit_json(changed=False, headers=headers)


if __name__ == "__main__":
    main()
