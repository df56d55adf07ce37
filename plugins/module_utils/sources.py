"""What the modules know about the servers that model files come from: hub, mirror, redirects, refusals.

Runs on the hosts: Python standard library only, 3.9 or later.
"""

from __future__ import annotations

import email.utils
import re
import socket
import ssl
import time
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from ansible.module_utils.gguf import printable_url
from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import open_url

HUB_URL = "https://huggingface.co"
# Options of every module that asks the hub; plugins/doc_fragments/hub.py documents them.
HUB_ARGUMENTS = {
    "hub_url": {"type": "str", "default": HUB_URL},
    "mirror_url": {"type": "str", "default": ""},
    "token": {"type": "str", "default": "", "no_log": True},
    "timeout": {"type": "int", "default": 30},
}

MAX_REDIRECTS = 10
# Pre-signed addresses and simple servers know GET only.
NO_HEAD = (403, 405, 501)
# What may be gone in a moment: overload, restarts, a lost connection to what is behind a proxy.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# Nobody waits longer for a server's word than this, in seconds.
MAX_RETRY_AFTER = 300

Error = (OSError, ValueError, UrlsConnectionError)


def send(url, timeout, headers, method="HEAD"):
    """Send one request, follow no redirect and read no body.

    Arguments: url (str), timeout (int, seconds), headers (dict), method (str).
    Returns (status, headers with case-insensitive get). Errors: OSError, ValueError.
    """
    try:
        with open_url(
            url,
            method=method,
            timeout=timeout,
            follow_redirects="none",
            headers={"Accept-Encoding": "identity", **headers},
        ) as response:
            return response.status, response.headers
    except HTTPError as error:
        with error:
            return error.code, error.headers


class Hub:
    """The model hub, the only server that is believed when it announces a sha256, and told a token.

    Arguments:
        url (str): its address.
        mirror_url (str): address of an organisation's mirror that is asked in its place; empty for none.
        token (str): bearer token for gated repositories; empty for none.
    """

    def __init__(self, url=HUB_URL, mirror_url="", token=""):
        self._url = url.rstrip("/") + "/"
        self._asked = (mirror_url or url).rstrip("/") + "/"
        self._token = token

    @classmethod
    def of(cls, options):
        """Return the hub that a module's parameters (dict, see HUB_ARGUMENTS) tell of."""
        return cls(options["hub_url"], options["mirror_url"], options["token"])

    def has(self, url):
        """Whether a url (str) of the catalogue is one of the hub's."""
        return url.startswith(self._url)

    def address(self, url):
        """Return where a url (str) is asked: at the mirror if it is the hub's and there is one."""
        return self._asked + url[len(self._url) :] if self.has(url) else url

    def answers(self, address):
        """Whether an address (str) is on the hub itself or on its mirror."""
        return address.startswith(self._asked)

    def headers(self, address):
        """Return the headers (dict) of a request to an address (str): nobody else sees the token."""
        if self._token and self.answers(address):
            return {"Authorization": f"Bearer {self._token}"}
        return {}


def status_problem(status, hub=False, token=False):
    """Say what an HTTP status (int) means for the operator; empty for a good one.

    Arguments: hub (bool) whether the hub answered so; token (bool) whether it was told one.
    """
    if status in (401, 403) and hub:
        why = "the token of llm_hub_token may not read it" if token else "it wants to know who asks"
        return (
            f"answers {status} (access refused): {why}; accept its licence on the hub's page of the"
            " repository, and set llm_hub_token to a token of that account"
        )
    if status in (401, 403):
        return (
            f"answers {status} (access refused): it wants a login or an accepted licence;"
            " take another source, or put the file into llm_models_dir by hand"
        )
    if status in (404, 410):
        return f"answers {status} (not found): correct the url"
    if status == 429:
        return "answers 429 (too many requests): try again later, or take another source"
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


def retry_after(headers):
    """Return the seconds (int) that a server asks to wait; 0 when it does not say.

    Source: RFC 9110, 10.2.3: a number of seconds, or a date.
    """
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return min(int(text), MAX_RETRY_AFTER)
    try:
        then = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return 0
    return max(0, min(int(then - time.time()), MAX_RETRY_AFTER))


def ask(url, hub, timeout, send=send):
    """Return what the source of one URL announces. Fetches nothing.

    Arguments:
        url (str): of a model file.
        hub (Hub): the model hub.
        timeout (int): seconds to wait for each answer.
        send (callable): sends one request, see send.

    Returns a dict:
        problem (str): what is wrong, empty when nothing is,
        transient (bool): whether the problem may go away by itself,
        retry_after (int): seconds that the server asks to wait,
        no_connection (bool): whether no server answered at all,
        size (int): bytes, 0 when not announced,
        sha256 (str): what the hub announces, else empty,
        etag, modified (str): the file's version in the server's words, empty when not announced,
        address (str): where the bytes come from, behind redirects; may hold a signature, so never show it.
    Source of the X-Linked headers: the hub's own client, file_download.py of huggingface_hub.
    """
    answer = {
        "problem": "", "transient": False, "retry_after": 0, "no_connection": False,
        "size": 0, "sha256": "", "etag": "", "modified": "", "address": hub.address(url),
    }  # fmt: skip
    for hop in range(MAX_REDIRECTS):
        address = answer["address"]
        try:
            status, headers = send(address, timeout, hub.headers(address))
            on_hub = hub.has(url) and hub.answers(address)
            if status in NO_HEAD and not on_hub and (status != 403 or hop):
                status, headers = send(address, timeout, {"Range": "bytes=0-0"}, method="GET")
            elif status == 200 and hub.headers(address):
                # Who fetches it there is told the token too, and must not take it along if GET is redirected.
                told = {**hub.headers(address), "Range": "bytes=0-0"}
                status, headers = send(address, timeout, told, method="GET")
            location = headers.get("Location") if 300 <= status < 400 else None
        except Error as error:
            answer.update(problem=connection_problem(error, timeout), transient=True, no_connection=True)
            return answer
        etag = re.fullmatch(r'(?:W/)?"?([0-9a-fA-F]{64})"?', headers.get("X-Linked-Etag") or "")
        if on_hub and etag and status < 400:
            # The hub itself vouches for the file; what it redirects to may take GET only.
            answer["sha256"] = etag.group(1).lower()
            answer["size"] = _number(headers.get("X-Linked-Size"))
        if location:
            answer["address"] = urljoin(address, location)
            if answer["sha256"] and not hub.answers(answer["address"]):
                return answer
            continue
        answer["problem"] = status_problem(status, on_hub, bool(hub.headers(address)))
        answer["transient"] = status in TRANSIENT
        answer["retry_after"] = retry_after(headers)
        content_type = (headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if not answer["problem"] and content_type in ("text/html", "application/xhtml+xml"):
            answer["problem"] = (
                "answers a web page, not a GGUF file: correct the url (on the hub, /resolve/"
                " instead of /blob/)"
            )
        if not answer["problem"]:
            answer["size"] = answer["size"] or _size(headers)
            answer["etag"] = headers.get("ETag") or ""
            answer["modified"] = headers.get("Last-Modified") or ""
        return answer
    answer["problem"] = f"redirects more than {MAX_REDIRECTS} times: correct the url"
    return answer


def _size(headers):
    """Return the size (int, bytes) of the whole file that an answer announces, 0 when it does not."""
    part = re.fullmatch(r"bytes .*/(\d+)", headers.get("Content-Range") or "")
    return int(part.group(1)) if part else _number(headers.get("Content-Length"))


def _number(text):
    """Return a header's number, 0 when there is none."""
    return int(text) if text and text.isdigit() else 0


def ask_all(urls, hub, timeout, attempts=1, wait=2, send=send):
    """Return a dict of the answers by URL; a server that cannot be reached is asked only once.

    Arguments:
        urls (list of str): of model files.
        hub (Hub): the model hub.
        timeout (int): seconds to wait for each answer.
        attempts (int): how often a server is asked that answers, but with a passing error.
        wait (int): seconds between the first two attempts, doubled each time.
        send (callable): sends one request, see send.
    """
    sources = {}
    unreachable = {}
    for url in dict.fromkeys(urls):
        server = urlsplit(url).netloc
        if server in unreachable:
            sources[url] = dict(unreachable[server])
        else:
            for attempt in range(attempts):
                answer = ask(url, hub, timeout, send)
                if not answer["transient"] or answer["no_connection"] or attempt == attempts - 1:
                    break
                time.sleep(answer["retry_after"] or wait << attempt)
            sources[url] = answer
            if answer["no_connection"]:
                unreachable[server] = dict(answer)
        if sources[url]["problem"]:
            sources[url]["problem"] = f"{printable_url(url)} {sources[url]['problem']}"
    return sources
