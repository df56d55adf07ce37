#!/usr/bin/python
"""Module gguf_fetch: model files come to their place whole and verified, or not at all."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_fetch
short_description: Fetches model files by aria2, verifies them, and puts them in place
description:
  - Each file is fetched into O(directory)C(/.partial), over several connections and several files at
    once, checked (GGUF, length, sha256), and moved into place in one step. What is in place is never
    touched by a failure.
  - What has arrived is kept when a connection breaks, the play is killed or the host goes down, and
    the next run goes on from there. A file that its source has changed meanwhile (sha256, size, ETag)
    is begun anew.
  - A second fetch of the same directory ends the first, and goes on from where it was.
  - Its action plugin shows the progress while it runs, for which the task must be asynchronous
    (C(async) with C(poll=0)). The fetch itself outlives a play that is killed.
  - Proxies come from the environment (C(http_proxy), C(https_proxy), C(no_proxy)).
options:
  files:
    description: What is missing, as the module gguf_store returns it (C(file), C(url), C(sha256),
      C(link)). C(peers) may list further URLs of the same file, which are asked before C(url).
    type: list
    elements: dict
    required: true
  directory:
    description: Directory of the model files.
    type: path
    required: true
  ca_bundle:
    description: Path of a PEM bundle to trust besides the host's own; empty for none.
    type: str
    default: ""
  connections:
    description: Connections per file.
    type: int
    default: 4
  parallel_files:
    description: Files that are fetched at once.
    type: int
    default: 2
  proofs:
    description: Patterns of the paths of C(proved.json) of each instance's last good release. What a server
      was proved with stays below C(.previous) when another content takes its name, until it is no longer
      needed; and comes from there when it is wanted again.
    type: list
    elements: str
    default: [/var/lib/llamacpp/*/good/proved.json]
  rate_limit:
    description: Bytes per second of all files together, with C(K) or C(M) for KiB or MiB; empty for no limit.
    type: str
    default: ""
  timeout:
    description: Seconds without any data after which a connection counts as dead and is opened anew.
    type: int
    default: 30
  attempts:
    description: Attempts in a row that may bring nothing before a file is given up.
    type: int
    default: 5
  retry_wait:
    description: Seconds before the second attempt, doubled each time up to a minute. A server that says
      how long to wait (C(Retry-After)) is believed.
    type: int
    default: 5
  progress_interval:
    description: Seconds between two lines of progress in the output of the play.
    type: int
    default: 15
extends_documentation_fragment: [ansible.builtin.files, hub]
author: ansible-llamacpp
"""

EXAMPLES = r"""
- name: Missing model files are fetched
  gguf_fetch:
    files: "{{ store.missing }}"
    directory: /home/llm/llamacpp/model
  async: 86400
  poll: 0
"""

RETURN = r"""
fetched:
  description: What is in place now, a list of dicts of C(file), C(attempts) and C(bytes).
  type: list
  returned: always
problems:
  description: A line for each file that is not.
  type: list
  returned: always
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gguf import WAIVED, printable_url, state_of
from ansible.module_utils.sources import HUB_ARGUMENTS, Hub, ask, status_problem
from ansible.module_utils.store import (
    PROOFS_ARGUMENT,
    Refused,
    bring_back,
    install,
    install_link,
    is_held,
    look,
    source_path,
)

# aria2's summary with --human-readable=false: [#2089b0 409600B/34897100B(1%) CN:1 DL:118476B ETA:4m51s]
READOUT = re.compile(r"\[#\w+ (\d+)B/(\d+)B\S* CN:\d+(?: DL:(\d+)B)?(?: ETA:(\w+))?")
# [HttpSkipResponseCommand.cc:239] errorCode=22 The response status is not successful. status=500
REASON = re.compile(r"errorCode=\d+ (?!URI=)(.+)")
STATUS = re.compile(r"status=(\d{3})")

# Exit statuses of aria2 that another attempt cannot mend. Source: aria2c(1), EXIT STATUS.
DISK_FULL = 9
CANNOT_WRITE = (15, 16, 17, 18)
SLOWEST = 1024  # bytes per second and connection; below, a connection counts as stalled
# An attempt has brought something when it won this share of the file, or this many bytes.
WORTH = 0.01
WORTH_BYTES = 64 << 20
LONGEST_WAIT = 60
COPY_BYTES = 4 << 20
PROGRESS = ".progress.json"
LOCK = ".lock"


class Stopped(Exception):
    """Another fetch of the same directory has taken over."""


class Failed(Exception):
    """What another attempt cannot mend; its text says what is wrong and what to do."""


class Broken(Exception):
    """What another attempt may mend. Arguments: problem (str), seconds (int) that the source asks to wait."""

    def __init__(self, problem, wait=0):
        super().__init__(problem)
        self.wait = wait


class Report:
    """The progress of all files, in a file that the module gguf_progress reads.

    Argument: path (str) of that file.
    """

    def __init__(self, path):
        self._path = path
        self._lock = threading.Lock()
        self._files = {}
        self._written = 0.0

    def tell(self, file, state, **details):
        """Note what is being done with a file (str).

        Arguments: state (str: waiting, fetching, retrying, verifying, in place, failed); details: done,
        size (bytes), speed (bytes per second), eta and note (str).
        """
        with self._lock:
            news = self._files.get(file, {}).get("state") != state
            self._files[file] = {"state": state, **details}
            if news or time.monotonic() - self._written > 0.5:
                self._write()

    def _write(self):
        self._written = time.monotonic()
        # On a full disk there are worse troubles, which have their own words.
        with contextlib.suppress(OSError):
            with open(f"{self._path}.new", "w", encoding="utf-8") as file:
                json.dump(self._files, file)
            os.replace(f"{self._path}.new", self._path)


class Fetch:
    """One file on its way.

    Arguments:
        wanted (dict): entry of the module's files.
        options (dict): the module's parameters.
        report (Report): is told the progress.
        stop (threading.Event): is set when everything has to end.
        own (callable): gives a file (path) its owner, group and mode.
    """

    def __init__(self, wanted, options, report, stop, own):
        self.wanted = wanted
        self.file = wanted["file"]
        self.attempts = 0
        self.size = 0
        self._options = options
        self._report = report
        self._stop = stop
        self._own = own
        self._hub = Hub.of(options)
        self._path = os.path.join(options["directory"], self.file)
        self._partial = os.path.join(options["directory"], ".partial", self.file)
        self._urls = [*wanted.get("peers", []), wanted["url"]]
        self._origin = printable_url(wanted["url"])
        self._done = 0
        self._fruitless = 0
        self._resumed = False
        self._second_chance = True
        self._process = None

    def end(self):
        """Have aria2 note what has arrived, and leave. What waits or copies looks at the event."""
        if self._process is not None:
            self._process.terminate()

    # ---- before the first byte

    def announce(self):
        """Return the bytes (int) that are still to be written. Errors: Failed."""
        scheme = urlsplit(self.wanted["url"]).scheme
        if self._is_held():
            return 0
        if scheme == "file":
            path = source_path(self.wanted["url"])
            if not os.path.isfile(path):
                raise Failed(f"{self.file}: {path} is not a file on this host; correct path in llm_models")
            self.size = os.path.getsize(path)
            return 0 if self.wanted.get("link") else self.size
        if scheme == "controller" or self._is_in_place():
            return 0
        try:
            self.size = self._ask(self._urls[0])["size"]
        except Broken as broken:
            # The fetch itself has patience; here only the size is wanted.
            self._report.tell(self.file, "waiting", note=str(broken))
        return max(0, self.size - self._on_disk())

    def _is_in_place(self):
        """Whether a fetch that this one was to take over from has been faster, and brought the file."""
        wanted = self.wanted
        return wanted["url"].startswith("http") and (
            state_of(self._path, wanted["sha256"], wanted["url"]) == "verified"
        )

    def _is_held(self):
        """Whether it is wanted again after another one has taken its name."""
        sha256 = self.wanted["sha256"]
        return (
            sha256 not in ("", WAIVED)
            and not self.wanted.get("link")
            and is_held(self._options["directory"], sha256)
        )

    def _on_disk(self):
        """Return the bytes that an earlier attempt has left; files of aria2 have holes."""
        try:
            return os.stat(self._partial).st_blocks * 512
        except OSError:
            return 0

    # ---- the fetch

    def run(self):
        """Bring the file into place. Errors: Failed, Refused, Stopped, OSError."""
        best = 0
        while True:
            self.attempts += 1
            try:
                self._attempt()
                self._report.tell(self.file, "in place", size=self.size)
                return
            except Broken as broken:
                if self._from_peer():
                    del self._urls[0]
                    continue
                won = self._done - best >= max(1, min(self.size * WORTH, WORTH_BYTES))
                best = max(best, self._done)
                self._fruitless = 0 if won else self._fruitless + 1
                if self._fruitless >= self._options["attempts"]:
                    raise Failed(
                        f"{self.file}: {self._origin} {broken}. Given up after {self.attempts} attempts;"
                        f" what has arrived ({self._on_disk()} bytes) is kept, and the next run goes on from"
                        " there"
                    ) from broken
                doubled = min(max(self._fruitless - 1, 0), 10)
                wait = min(self._options["retry_wait"] << doubled, LONGEST_WAIT)
                wait = broken.wait or wait
                self._report.tell(self.file, "retrying", note=f"{broken}; again in {wait} s")
                if self._stop.wait(wait):
                    raise Stopped from None

    def _from_peer(self):
        """Whether another host is asked for the file, and not its source."""
        return self._urls[0] != self.wanted["url"]

    def _attempt(self):
        scheme = urlsplit(self.wanted["url"]).scheme
        proofs = self._options["proofs"]
        if self._is_held() and bring_back(self._path, self.wanted["sha256"], proofs):
            self.size = os.path.getsize(self._path)
            self._discard()
            return
        if scheme == "file" and self.wanted.get("link"):
            self._report.tell(self.file, "verifying", size=self.size)
            install_link(
                source_path(self.wanted["url"]),
                self._path,
                self.wanted["sha256"],
                self.wanted["url"],
                proofs=proofs,
            )
            return
        expected = self.wanted["sha256"]
        vouched = False
        if scheme == "file":
            self._copy()
        elif self._is_in_place():
            self.size = os.path.getsize(self._path)
            return
        elif scheme != "controller":
            source = self._ask(self._urls[0])
            # Other hosts announce no sha256.
            by_source = self._from_peer() and not self.wanted["sha256"]
            announced = self._ask(self.wanted["url"]) if by_source else source
            vouched = bool(announced["sha256"])
            expected = self._expected(announced)
            self.size = source["size"]
            if not self.wanted["sha256"] and look(self._path, expected, self.wanted["url"])["present"]:
                # It was put there by hand, and only the hub could tell that it is the right one.
                return
            self._prepare(source, expected)
            if not self._is_complete():
                self._download(source["address"])
        self._install(expected, vouched)

    def _ask(self, url):
        """Return what a source announces. Errors: Broken, or Failed when asking again is of no use."""
        source = ask(url, self._hub, self._options["timeout"])
        if source["problem"] and source["transient"]:
            raise Broken(source["problem"], source["retry_after"])
        if source["problem"]:
            if url != self.wanted["url"]:
                raise Broken(source["problem"])
            raise Failed(f"{self.file}: {self._origin} {source['problem']}")
        return source

    def _expected(self, source):
        """Return the sha256 that the file must have. Errors: Failed."""
        given, announced = self.wanted["sha256"], source["sha256"]
        if given and given != WAIVED and announced and given != announced:
            raise Failed(
                f"{self.file}: sha256 expected {given}, but {self._origin} announces {announced};"
                " correct sha256, or pin the commit in the url"
            )
        if not given and not announced:
            raise Failed(
                f"{self.file}: {self._origin} announces no sha256; write it into llm_models (sha256sum FILE),"
                " or `sha256: none` to waive the check"
            )
        return announced or given

    # ---- what has arrived so far

    def _prepare(self, source, expected):
        """Throw away what an earlier attempt has left of another file.

        Arguments: source (dict), what the source announces now; expected (str), the sha256.
        """
        known = self._read_note()
        version = {key: source[key] for key in ("size", "sha256", "etag", "modified")}
        before = known.get(self._urls[0])
        if os.path.exists(self._partial) and (
            # Without aria2's own notes nobody knows which parts of it have arrived.
            not (os.path.exists(f"{self._partial}.aria2") or self._is_complete())
            or known.get("expected") != expected
            # From another source, only the sha256 can tell that it is the same file.
            or (_differ(before, version) if before else expected == WAIVED)
        ):
            self._discard()
            known = {}
        self._resumed = os.path.exists(self._partial)
        note = {**known, "expected": expected, self._urls[0]: version}
        with open(f"{self._partial}.source", "w", encoding="utf-8") as file:
            json.dump(note, file)

    def _read_note(self):
        try:
            with open(f"{self._partial}.source", encoding="utf-8") as file:
                note = json.load(file)
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _has_changed(self):
        """Whether the source has another version by now than when the fetch began. Errors: Broken, Failed."""
        before = self._read_note().get(self._urls[0])
        return before is not None and _differ(before, self._ask(self._urls[0]))

    def _is_complete(self):
        return (
            self.size > 0
            and not os.path.exists(f"{self._partial}.aria2")
            and os.path.exists(self._partial)
            and os.path.getsize(self._partial) == self.size
        )

    def _discard(self):
        self._done = 0
        for suffix in ("", ".aria2", ".source"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._partial + suffix)

    # ---- the bytes

    def _command(self):
        """Return aria2's command line; addresses come through its standard input, where nobody sees them."""
        options = self._options
        command = [
            "aria2c", "--no-conf", "--input-file=-",
            f"--dir={os.path.dirname(self._partial)}",
            "--auto-file-renaming=false", "--file-allocation=none", "--auto-save-interval=10",
            # A server that does not know Range gets the whole file asked again; nothing is ever appended.
            "--always-resume=false",
            f"--split={options['connections']}", f"--max-connection-per-server={options['connections']}",
            # Below, a second connection costs more than it brings.
            "--min-split-size=64M",
            f"--timeout={options['timeout']}", f"--connect-timeout={options['timeout']}",
            f"--lowest-speed-limit={SLOWEST}",
            f"--retry-wait={options['retry_wait']}", "--max-tries=5",
            # The host's own name service, as everything else on it uses.
            "--async-dns=false",
            "--summary-interval=1", "--human-readable=false", "--show-console-readout=false",
            "--console-log-level=warn", "--download-result=hide", "--enable-color=false",
            f"--stop-with-process={os.getpid()}",
        ]  # fmt: skip
        if options["rate_limit"]:
            share = bytes_of(options["rate_limit"]) // min(options["parallel_files"], len(options["files"]))
            command.append(f"--max-overall-download-limit={max(share, SLOWEST)}")
        if options["ca_file"]:
            command.append(f"--ca-certificate={options['ca_file']}")
        return command

    def _download(self, address):
        """Have aria2 fetch the file, or the rest of it. Errors: Broken, Failed, Stopped."""
        self._report.tell(self.file, "fetching", done=self._done, size=self.size)
        reason = ""
        with subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            self._process = process
            # With an input file, aria2 takes the file's name from there alone. A token is for an address on
            # the hub or its mirror that has the file itself.
            headers = [f"  header={name}: {value}\n" for name, value in self._hub.headers(address).items()]
            process.stdin.write(f"{address}\n  out={self.file}\n{''.join(headers)}")
            process.stdin.close()
            for line in process.stdout:
                readout = READOUT.search(line)
                if readout:
                    done, size, speed = (int(number or 0) for number in readout.groups()[:3])
                    eta = readout.group(4) or ""
                    self._report.tell(self.file, "fetching", done=done, size=size, speed=speed, eta=eta)
                elif REASON.search(line):
                    reason = re.sub(r"\w+://\S+", "", REASON.search(line).group(1)).strip(" .")
                if self._stop.is_set():
                    self.end()
        self._process = None
        self._done = self._on_disk()
        if self._stop.is_set():
            raise Stopped
        code = process.returncode
        if code == 0:
            return
        if code == DISK_FULL:
            directory = self._options["directory"]
            raise Failed(
                f"{self.file}: the disk of {directory} is full ({_free(directory)} bytes free, all of this"
                f" file needs {self.size}); make room, and the next run goes on from where it was"
            )
        if code in CANNOT_WRITE:
            raise Failed(
                f"{self.file}: {os.path.dirname(self._partial)} cannot be written (aria2: {reason or code});"
                " look at the disk and the file system of llm_models_dir"
            )
        status = STATUS.search(reason)
        if "segment file" in reason or (status and status.group(1) == "416" and self._fruitless):
            # A full disk has cut off aria2's notes, or the source does not have what is to come next.
            self._discard()
        problem = status_problem(int(status.group(1))) if status else ""
        raise Broken(problem or f"breaks off (aria2: {reason or code})")

    def _copy(self):
        """Copy a file that is on this host already. Errors: Stopped, OSError."""
        with open(source_path(self.wanted["url"]), "rb") as source, open(self._partial, "wb") as target:
            for block in iter(lambda: source.read(COPY_BYTES), b""):
                target.write(block)
                self._report.tell(self.file, "fetching", done=target.tell(), size=self.size)
                if self._stop.is_set():
                    raise Stopped

    # ---- the proof

    def _install(self, expected, vouched):
        """Verify what has arrived and put it in place.

        Arguments: expected (str), the sha256; vouched (bool), whether the hub itself announced it.
        Errors: Refused, Broken when it is worth while to fetch it once more, OSError.
        """
        self.size = os.path.getsize(self._partial)
        self._report.tell(self.file, "verifying", done=0, size=self.size)

        def verified(done):
            if self._stop.is_set():
                raise Stopped
            self._report.tell(self.file, "verifying", done=done, size=self.size)

        self._own(self._partial)
        try:
            install(
                self._partial,
                self._path,
                expected,
                self.wanted["url"],
                progress=verified,
                proofs=self._options["proofs"],
            )
        except Refused as refused:
            # It comes from another host, was put together from several attempts or versions, or the hub says
            # what it must be: then the way is to blame, not the catalogue.
            again = self._from_peer() or (
                self._second_chance and (self._resumed or vouched or self._has_changed())
            )
            self._second_chance = self._from_peer()
            self._discard()
            if again:
                raise Broken(f"sent something else than it announced ({refused})") from refused
            raise
        self._discard()


def _differ(before, now):
    """Whether two announcements (dicts) are of different files.

    Servers behind one name may each have an ETag, or a date, of their own for the same file.
    """
    if before["size"] != now["size"] or before["sha256"] != now["sha256"]:
        return True
    told = [key for key in ("etag", "modified") if before[key] and now[key]]
    return bool(told) and all(before[key] != now[key] for key in told)


def _free(directory):
    """Return the bytes that are free for everybody where a directory (str) is."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def bytes_of(text):
    """Return a number of bytes (int) of a text like 500K, 20M or 1000000. Errors: ValueError."""
    match = re.fullmatch(r"(\d+)([KM]?)", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a number of bytes per second, like 500K or 20M")
    return int(match.group(1)) << {"": 0, "K": 10, "M": 20}[match.group(2).upper()]


def lock(directory):
    """Return the open lock file of a directory of unfinished downloads; a fetch that holds it is ended.

    Errors: Failed when it does not end within a minute; OSError.
    """
    file = open(os.path.join(directory, LOCK), "a+", encoding="utf-8")  # noqa: SIM115 (held as long as this process)
    for _second in range(60):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            if holder.isdigit():
                _end_fetch(int(holder))
            time.sleep(1)
            continue
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file
    raise Failed(f"an earlier fetch into {directory} does not end; look for aria2c and python3 on the host")


def _end_fetch(pid):
    """Have a process (pid, int) end, if it is a fetch: its number may be that of another process by now."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            command = file.read()
        if "gguf_fetch" in command:
            os.kill(pid, signal.SIGTERM)


def trusted(ca_bundle, directory):
    """Return the path of a PEM file of the host's certificates and those of a bundle (path).

    It is made in a directory (path); empty without a bundle. Errors: OSError.
    """
    if not ca_bundle:
        return ""
    own = ssl.get_default_verify_paths().cafile
    with tempfile.NamedTemporaryFile("wb", dir=directory, prefix=".ca-", delete=False) as together:
        for path in [own, ca_bundle]:
            if path and os.path.isfile(path):
                with open(path, "rb") as source:
                    shutil.copyfileobj(source, together)
                together.write(b"\n")
    return together.name


def all_of(fetches, at_once, stop, work):
    """Do something with each file, and return the problems by file.

    Arguments:
        fetches (list of Fetch): one per file.
        at_once (int): how many of them at the same time.
        stop (threading.Event): ends it.
        work (callable): takes a Fetch.

    Errors: Stopped.
    """
    problems = {}

    def guarded(fetch):
        try:
            if not stop.is_set():
                work(fetch)
        except (Failed, Refused) as error:
            problems[fetch.file] = str(error)
        except OSError as error:
            problems[fetch.file] = f"{fetch.file}: {error}"
        except Stopped:
            pass

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        list(pool.map(guarded, fetches))
    if stop.is_set():
        raise Stopped
    return problems


def run(options, own):
    """Fetch all files.

    Arguments: options (dict), the module's parameters; own (callable), gives a file its owner and mode.
    Returns (fetched, problems) as in RETURN. Errors: Failed, Stopped, OSError.
    """
    partial = os.path.join(options["directory"], ".partial")
    os.makedirs(partial, mode=0o700, exist_ok=True)
    held = lock(partial)
    stop = threading.Event()
    options["ca_file"] = trusted(options["ca_bundle"], partial)
    if options["ca_file"]:
        os.environ["SSL_CERT_FILE"] = options["ca_file"]
    report = Report(os.path.join(partial, PROGRESS))
    fetches = [Fetch(wanted, options, report, stop, own) for wanted in options["files"]]

    def end(*_signal):
        stop.set()
        for fetch in fetches:
            fetch.end()

    signal.signal(signal.SIGTERM, end)
    try:
        for fetch in fetches:
            report.tell(fetch.file, "waiting")
        needed = {}

        def announce(fetch):
            needed[fetch.file] = fetch.announce()

        at_once = options["parallel_files"]
        problems = all_of(fetches, at_once, stop, announce)
        free = _free(options["directory"])
        if sum(needed.values()) > free:
            lacking = ", ".join(fetch.file for fetch in fetches if needed.get(fetch.file))
            raise Failed(
                f"too little space in {options['directory']}: {sum(needed.values())} bytes are missing of"
                f" {lacking}, {free} are free; make room, or choose another llm_models_dir"
            )
        ready = [fetch for fetch in fetches if fetch.file not in problems]
        problems.update(all_of(ready, at_once, stop, Fetch.run))
        for file, problem in problems.items():
            report.tell(file, "failed", note=problem)
    finally:
        if options["ca_file"]:
            os.unlink(options["ca_file"])
        held.truncate(0)  # the number may soon be that of another process
        held.close()
    fetched = [
        {"file": fetch.file, "attempts": fetch.attempts, "bytes": fetch.size}
        for fetch in ready
        if fetch.file not in problems
    ]
    return fetched, list(problems.values())


def forget_arguments():
    """Remove the file that this process was started from: the token stands among the arguments in it.

    Ansible keeps that of an asynchronous job until the job has ended, and for good when the host goes down.
    """
    with open("/proc/self/cmdline", encoding="utf-8", errors="replace") as file:
        command = file.read().split("\0")
    for word in command:
        if os.path.basename(word) == "AnsiballZ_gguf_fetch.py":
            with contextlib.suppress(OSError):
                os.unlink(word)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True},
            "directory": {"type": "path", "required": True},
            **HUB_ARGUMENTS,
            "ca_bundle": {"type": "str", "default": ""},
            **PROOFS_ARGUMENT,
            "connections": {"type": "int", "default": 4},
            "parallel_files": {"type": "int", "default": 2},
            "rate_limit": {"type": "str", "default": ""},
            "attempts": {"type": "int", "default": 5},
            "retry_wait": {"type": "int", "default": 5},
            "progress_interval": {"type": "int", "default": 15},
        },
        add_file_common_args=True,
    )
    forget_arguments()
    ownership = threading.Lock()

    def own(path):
        # Before the move: the file never has another owner or mode at its place.
        attributes = module.load_file_common_arguments(dict(module.params, path=path))
        with ownership:
            module.set_fs_attributes_if_different(attributes, False)

    try:
        if module.params["rate_limit"]:
            bytes_of(module.params["rate_limit"])
        fetched, problems = run(dict(module.params), own)
    except Stopped:
        module.fail_json(msg="Another fetch of these files has been started and goes on from here.")
    except (Failed, OSError, ValueError) as error:
        module.fail_json(msg=str(error), fetched=[], problems=[str(error)])
    if problems:
        lines = ["What was in place before is untouched. Model files that are not:"]
        lines += [f"- {problem}" for problem in problems]
        module.fail_json(msg="\n".join(lines), fetched=fetched, problems=problems, changed=bool(fetched))
    module.exit_json(changed=bool(fetched), fetched=fetched, problems=[])


if __name__ == "__main__":
    main()
