#!/usr/bin/python
"""Module gguf_header: what model files say of their sizes, before they are fetched."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_header
short_description: Reads the GGUF headers of model files, on the host or at their source
description:
  - A file that is in place is read there; of any other the first bytes are fetched from its URL
    (HTTP Range), only as far as its header reaches. Changes nothing.
  - Proxies and a private CA come from the environment (C(https_proxy), C(SSL_CERT_FILE)).
  - Of a split model (C(-00001-of-0000N.gguf)) every part is read.
options:
  models:
    description: Entries of the catalogue; C(file), C(url) and C(sha256) of each are used.
    type: list
    elements: dict
    required: true
  models_dir:
    description: Directory of the model files.
    type: str
    required: true
  timeout:
    description: Seconds to wait for each answer.
    type: int
    default: 30
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Headers of the models are read
  gguf_header:
    models:
      - file: vicuna-13b-v1.5.Q8_0.gguf
        url: https://models.example.com/vicuna-13b-v1.5.Q8_0.gguf
    models_dir: /home/llm/llamacpp/model
  register: found
"""

RETURN = r"""
headers:
  description: >-
    Per model file a dict of C(parts) (one per file of the model, each with C(header), the GGUF
    header without the vocabulary, compressed by zlib, in base64, and C(size), the file's bytes) and
    C(problem) (why there is none, empty when there is).
  type: dict
  returned: always
"""

import base64
import os
import re
import zlib
from http.client import HTTPException
from urllib.error import HTTPError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gguf import header_problem, printable_url, sizing_header, state_of
from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import open_url

# Most headers are complete in the first request; a vocabulary of 256,000 words takes 7 MB.
FIRST_BYTES = 1 << 20
MAX_BYTES = 64 << 20
BLOCK_BYTES = 1 << 18
NO_SIZE = "does not announce the size of the file"
FIRST_PART = re.compile(r"-00001-of-(\d{5})(?=\.gguf)")


def get(url, timeout, start, end):
    """Ask for the bytes start … end (inclusive) of a URL (str); timeout in seconds.

    Returns the response. Errors: OSError (HTTPError for a status of 400 and above), ValueError.
    """
    return open_url(
        url,
        timeout=timeout,
        follow_redirects="all",
        decompress=False,
        headers={"Range": f"bytes={start}-{end}", "Accept-Encoding": "identity"},
    )


class Remote:
    """A file at a URL, read from its beginning in growing ranges.

    Arguments: url (str) of the source, timeout (int, seconds). ``size`` is known once it was read from.
    """

    def __init__(self, url, timeout):
        self.size = 0
        self._url = url
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
        self._response = get(self._url, self._timeout, self._got, self._got + length - 1)
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


def from_url(url, timeout):
    """Return a dict of header and size of the model file at a URL. Arguments: as Remote.

    Errors: ValueError with what is wrong.
    """
    remote = Remote(url, timeout)
    where = printable_url(url)
    try:
        header = sizing_header(remote.read, MAX_BYTES)
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
            header = sizing_header(lambda: file.read(BLOCK_BYTES), MAX_BYTES)
        return packed(header, os.path.getsize(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def packed(header, size):
    """Return a dict as JSON can carry it, of a header (bytes) and the file's size (int, bytes)."""
    return {"header": base64.b64encode(zlib.compress(header, 9)).decode("ascii"), "size": size}


def parts_of(name):
    """Return the names of all files of a model, of a file name or URL (str); itself if it is whole."""
    split = FIRST_PART.search(name)
    if not split:
        return [name]
    count = int(split.group(1))
    return [
        f"{name[: split.start()]}-{part:05d}-of-{count:05d}{name[split.end() :]}"
        for part in range(1, count + 1)
    ]


def ask(model, models_dir, timeout):
    """Return what is known of a model's sizes: a dict of parts and problem, see RETURN.

    Arguments:
        model (dict): entry of the catalogue.
        models_dir (str): directory of the model files.
        timeout (int): seconds to wait for each answer of its source.
    """
    path = os.path.join(models_dir, model["file"])
    url = model.get("url") or ""
    try:
        # What another file has to make way for is not what will be loaded.
        state = state_of(path, model.get("sha256") or "", url)
        if state in ("verified", "unverified") and not header_problem(path):
            parts = [from_file(part) for part in parts_of(path)]
        else:
            parts = [from_url(part, timeout) for part in parts_of(url)]
    except (OSError, ValueError) as error:
        return {"parts": [], "problem": str(error)}
    return {"parts": parts, "problem": ""}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "models_dir": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    headers = {
        model["file"]: ask(model, module.params["models_dir"], module.params["timeout"])
        for model in module.params["models"]
    }
    module.exit_json(changed=False, headers=headers)


if __name__ == "__main__":
    main()
