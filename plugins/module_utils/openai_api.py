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


class CutOff(Broken):
    """An answer that began and did not come to its end."""


def first_der(pem):
    """Returns the first certificate in a PEM text, in binary form (DER). Raises Broken when there is none."""
    start, end = pem.find(ssl.PEM_HEADER), pem.find(ssl.PEM_FOOTER)
    try:
        return ssl.PEM_cert_to_DER_cert(pem[start : end + len(ssl.PEM_FOOTER)])
    except ValueError as error:
        raise Broken(f"the deployed certificate cannot be read: {error}") from error


# Options of the modules that ask a server (documentation fragment openai_server).
CLIENT_ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "api_key": {"type": "str", "default": "", "no_log": True},
    "certificate": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 900},
}


class Client:
    """A small HTTP client for one server.

    url: base URL (http or https). api_key: bearer token or "". timeout: seconds without a byte.
    certificate: PEM text, of which the first certificate must be the server's, where the url is https; ""
    accepts any, for servers on this host whose certificate nobody has told.
    """

    def __init__(self, url, api_key="", timeout=900, certificate=""):
        self.url = urllib.parse.urlsplit(url)
        self.api_key = api_key
        self.timeout = timeout
        self.certificate = certificate

    @classmethod
    def of(cls, options):
        """Returns the client that a module's parameters (dict, see CLIENT_ARGUMENTS) tell of."""
        return cls(options["url"], options["api_key"], options["timeout"], options["certificate"])

    def _connect(self):
        """Returns a connection over which nothing has been sent yet. Raises Broken, OSError."""
        if self.url.scheme != "https":
            return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=self.timeout)
        # Asked is an address, which hardly any certificate names. So the certificate itself is compared: that
        # needs no authority, and holds for an earlier release that is put back after its certificate's end.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            self.url.hostname, self.url.port, timeout=self.timeout, context=context
        )
        connection.connect()
        if self.certificate and connection.sock.getpeercert(binary_form=True) != first_der(self.certificate):
            connection.close()
            raise Broken(f"{self.url.geturl()} has another certificate than the deployed one")
        return connection

    def open(self, path, body=None, api_key=None):
        """Sends a request; returns the response, unread. Raises Broken when there is none."""
        headers = {"Content-Type": "application/json"}
        key = self.api_key if api_key is None else api_key
        if key:
            headers["Authorization"] = "Bearer " + key
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        try:
            connection = self._connect()
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

        Raises Broken on a status other than 200, CutOff when the stream ends without [DONE].
        """
        started = time.monotonic()
        response = self.open(path, dict(body, stream=True))
        if response.status != 200:
            raise Broken(f"HTTP {response.status}: {response.read(200)}")
        while True:
            try:
                line = response.readline()
            except (OSError, http.client.HTTPException) as error:
                raise CutOff(f"the stream broke off: {error!r}") from error
            if not line:
                raise CutOff("the stream ended without [DONE]")
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield time.monotonic() - started, json.loads(data)


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
