"""A small client of OpenAI-compatible servers, and the one question that each model must answer.

Runs on the hosts: Python standard library only, 3.9 or later.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.parse


class Broken(Exception):
    """A promise that the server did not keep; the text says what came instead."""


class Client:
    """A small HTTP client for one server.

    url: base URL (http or https; a self-signed certificate is accepted, the promise here is not identity).
    api_key: bearer token or "". timeout: seconds without a byte.
    """

    def __init__(self, url, api_key="", timeout=900):
        self.url = urllib.parse.urlsplit(url)
        self.api_key = api_key
        self.timeout = timeout

    def _connect(self):
        if self.url.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return http.client.HTTPSConnection(
                self.url.hostname, self.url.port, timeout=self.timeout, context=context
            )
        return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=self.timeout)

    def open(self, path, body=None, api_key=None):
        """Sends a request; returns the response, unread. Raises Broken when there is none."""
        headers = {"Content-Type": "application/json"}
        key = self.api_key if api_key is None else api_key
        if key:
            headers["Authorization"] = "Bearer " + key
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        connection = self._connect()
        try:
            connection.request("GET" if body is None else "POST", path, data, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"no answer from {self.url.geturl()}: {error}") from error

    def status(self, path, api_key=None):
        """Returns the HTTP status of a GET."""
        return self.open(path, api_key=api_key).status

    def json(self, path, body=None):
        """Returns the parsed answer. Raises Broken on any status but 200 and on what is not JSON."""
        response = self.open(path, body)
        try:
            text = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"the answer broke off: {error}") from error
        if response.status != 200:
            raise Broken(f"HTTP {response.status}: {text[:200]}")
        try:
            return json.loads(text)
        except ValueError as error:
            raise Broken(f"not JSON: {text[:200]}") from error

    def stream(self, path, body):
        """Sends a streaming request; yields (seconds since sending, parsed event), ends at [DONE].

        Raises Broken on a status other than 200 and when the stream ends without [DONE].
        """
        started = time.monotonic()
        response = self.open(path, dict(body, stream=True))
        if response.status != 200:
            raise Broken(f"HTTP {response.status}: {response.read(200)}")
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield time.monotonic() - started, json.loads(data)
        raise Broken("the stream ended without [DONE]")


def chat(model, question, max_tokens):
    """Returns the body of a deterministic chat completion request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


def check_answer(client, model, question, max_tokens):
    """Asks without streaming; returns (text, usage). Raises Broken when there is no text."""
    answer = client.json("/v1/chat/completions", chat(model, question, max_tokens))
    try:
        text = answer["choices"][0]["message"]["content"]
        usage = answer["usage"]
        tokens = usage["completion_tokens"]
    except (KeyError, IndexError, TypeError) as error:
        raise Broken(f"not a chat completion: {json.dumps(answer)[:200]}") from error
    if not text or not text.strip() or tokens < 1:
        raise Broken("the answer is empty")
    return text.strip(), usage
