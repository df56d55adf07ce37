"""What stands in for the world around a host that fetches model files: web servers, aria2, Ansible."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

ARIA2 = '''#!{python} -SI
"""Stand-in of aria2c: does with a file what the scenario says, and notes how it was called."""

import json, os, signal, sys, time

folder = os.path.dirname(os.path.abspath(__file__))
options = dict(option[2:].partition("=")[::2] for option in sys.argv[1:])
note = {{"argv": sys.argv, "stdin": sys.stdin.read(), "pid": os.getpid()}}
# With --input-file, aria2 does not look at --out.
address, *more = note["stdin"].splitlines()
named = [line[6:] for line in more if line.startswith("  out=")]
file = named[0] if named else address.rpartition("/")[2]
target = os.path.join(options["dir"], file)
control = target + ".aria2"
note["found"] = os.path.getsize(target) if os.path.exists(target) else None
if "ca-certificate" in options:
    with open(options["ca-certificate"]) as pem:
        note["trusted"] = pem.read()
notes = os.path.join(folder, file + ".calls")
calls = len(open(notes).readlines()) if os.path.exists(notes) else 0
with open(notes, "a") as log:
    log.write(json.dumps(note) + "\\n")

with open(os.path.join(folder, file + ".scenario")) as scenario:
    steps = json.load(scenario)
step = steps[min(calls, len(steps) - 1)]
with open(step["content"], "rb") as source:
    content = source.read()
end = step.get("upto", len(content))
# As aria2 does: what it has no notes of, it begins anew.
with open(target, "r+b" if os.path.exists(control) else "wb") as download:
    start = download.seek(0, os.SEEK_END)
    download.write(content[start:max(start, end)])
if end < len(content):
    open(control, "w").close()
elif os.path.exists(control):
    os.unlink(control)

def end_by_signal(*signal):
    os.write(1, b"shutdown sequence commencing\\n")
    os._exit(7)

if step.get("stay"):
    signal.signal(signal.SIGTERM, end_by_signal)
for text in step.get("lines", []):
    print(text, flush=True)
while step.get("stay"):
    print(step["stay"], flush=True)
    time.sleep(0.1)
sys.exit(step.get("exit", 0))
'''


class Source(http.server.ThreadingHTTPServer):
    """A web server on loopback that answers as it is told.

    Attributes:
        url: its address.
        answers: by path, or by method and path ("GET /x"), a list of (status, headers); the last one stays.
        seen: (method, path, headers) of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers = {}
        self.seen = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def offer(self, path, *answers):
        """Has a path answered by (status, headers) one after the other; returns its URL."""
        self.answers[path] = list(answers)
        return self.url + path.rpartition(" ")[2]

    def tokens(self):
        """What was sent as Authorization, by request."""
        return [headers.get("Authorization") for _method, _path, headers in self.seen]

    def asked(self):
        """Method and path of each request, as one text each."""
        return [f"{method} {path}" for method, path, _headers in self.seen]


class Answer(http.server.BaseHTTPRequestHandler):
    """One request to a Source."""

    def do_HEAD(self):
        self.server.seen.append((self.command, self.path, self.headers))
        path = self.path.partition("?")[0]
        answers = self.server.answers.get(f"{self.command} {path}") or self.server.answers.get(path)
        status, headers = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else (404, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *arguments):
        pass


class Aria2:
    """The stand-in of aria2c.

    Argument: folder, a directory that has to be the first of PATH.
    """

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        program = folder / "aria2c"
        program.write_text(ARIA2.format(python=sys.executable))
        program.chmod(0o755)

    def plays(self, file, content, *steps):
        """Says what happens to a file, call by call; the last step stays.

        A step is a dict of upto (bytes that the file has then, else all), lines (that are printed), stay (a
        line that is printed until SIGTERM comes), exit (status) and content (in place of the file's own).
        """
        told = []
        for number, step in enumerate(steps or ({},)):
            source = self.folder / f"{file}.{number}"
            source.write_bytes(step.get("content", content))
            told.append({**step, "content": str(source)})
        (self.folder / f"{file}.scenario").write_text(json.dumps(told))
        (self.folder / f"{file}.calls").unlink(missing_ok=True)

    def calls(self, file="x.gguf"):
        """How it was called for a file: dicts of argv, stdin, pid, found (bytes of the file) and trusted."""
        notes = self.folder / f"{file}.calls"
        return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    def found(self, file="x.gguf"):
        """The bytes that each call found of a file, None for no file."""
        return [call["found"] for call in self.calls(file)]


def go_straight(monkeypatch, folder):
    """Has requests take no proxy of this machine, nor the time to read its certificates."""
    monkeypatch.setenv("no_proxy", "*")
    (folder / "none.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "none.pem"))


def start_module(folder, module, **arguments):
    """Starts a module as Ansible does, in a process of its own; folder is for its arguments."""
    path = folder / f"arguments-{time.monotonic_ns()}.json"
    path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    return subprocess.Popen(
        [sys.executable, "-c", "import ansible.module_utils as u, runpy, sys;"
         f"u.__path__.append('{PROJECT}/plugins/module_utils');"
         f"runpy.run_path('{PROJECT}/plugins/modules/{module}.py', run_name='__main__')", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip


def end_module(process):
    """Waits for a module; returns (failed, result)."""
    output, errors = process.communicate(timeout=30)
    assert output, errors
    return process.returncode != 0, json.loads(output)


def until(condition, seconds=10):
    """Waits until a condition (callable) holds, and returns what it returned."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return result
