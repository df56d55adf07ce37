"""How an instance gets from one release to another, and back when the new one does not serve.

A release is a directory with the files of one deployment, and with release.json, the record of what it is.
It is complete: nothing else is needed to put it back, besides its image and the model files. A model file
that was replaced under its own name is held (module_utils/store.py) until no last good release was proved
with it. Below STATE/INSTANCE are

- releases/ID: the releases; proved.json is in those whose models have answered,
- good: a link to the last release that was proved,
- trying: while an instance is changed, what is tried.

Runs on the hosts: Python standard library only, 3.9 or later.
"""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import glob
import json
import os
import shutil
import time
from typing import Any, Callable, Sequence
from urllib.parse import quote, urlsplit

from ansible.module_utils.docker_api import ERRORS, OWN_LABEL, ask_docker, docker_runs
from ansible.module_utils.gguf import read_record
from ansible.module_utils.openai_api import Broken, Client, check_answer
from ansible.module_utils.store import bring_back, forget, is_held, strings_in

RECORD, PROVED, GOOD, TRYING = "release.json", "proved.json", "good", "trying"
QUESTION = "Say hello."
ANSWER_TOKENS = 8  # one alone may be the half of a character
LOG_LINES = 30
YOUNG = 3600  # seconds
IN_CONTAINER = "/llamacpp/model/"  # where the directory of model files is seen
CONFIG, CERTIFICATE, PRIVATE_KEY = "config.json", "tls.crt", "tls.key"
OUR_CERTIFICATE = "/llamacpp/tls.crt"  # where the server sees it


class Problem(Exception):
    """Why a change did not happen; the text is for the operator."""


def now() -> str:
    """Return the time (str), in UTC, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_json(path: str) -> dict[str, Any]:
    """Return the dictionary in a file, an empty one when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_bytes(path: str) -> bytes | None:
    """Return what a file holds, None when there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write_json(path: str, content: dict[str, Any]) -> None:
    """Write a file in one step, so that it is never half. Errors: OSError."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def copy_with_owner(source: str, target: str) -> None:
    """Copy a file with its mode, time, owner and group. Errors: OSError."""
    shutil.copy2(source, target)
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)


class Release:
    """One release.

    Arguments: path (str) of its directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.id = os.path.basename(path)
        self.record = read_json(os.path.join(path, RECORD))
        self.proved = read_json(os.path.join(path, PROVED))

    def __getattr__(self, key: str) -> Any:
        """Return what the record says: image, label, url, probe, files, models_dir."""
        try:
            return self.record[key]
        except KeyError:
            raise AttributeError(f"{os.path.join(self.path, RECORD)} does not say {key}") from None

    def order(self) -> tuple[int, str]:
        """Return what sorts releases by when they were proved; clocks may be set back, numbers grow."""
        return self.proved.get("number", 0), self.proved.get("at", "")

    def files(self) -> list[tuple[str, str]]:
        """Return (path in the release, path on the host) of each file; the first may be absent."""
        files = dict(self.record["files"])
        # Records of earlier versions say nothing of TLS: they do without, and leave no private key behind.
        for name in (CERTIFICATE, PRIVATE_KEY):
            files.setdefault(name, os.path.join(os.path.dirname(files[CONFIG]), name))
        return [(os.path.join(self.path, name), target) for name, target in files.items()]

    def api_key(self) -> str:
        """Return the key that clients must send, empty for none."""
        for source, _target in self.files():
            if source.endswith(".env"):
                for line in (read_bytes(source) or b"").decode().splitlines():
                    if line.startswith("API_KEY="):
                        return line[len("API_KEY=") :]
        return ""

    def certificate(self) -> str:
        """Return the deployed certificate and its chain, as PEM; empty when config.json does not name it."""
        config = read_json(os.path.join(self.path, CONFIG))
        if config.get("server", config).get("ssl_certfile") != OUR_CERTIFICATE:
            return ""  # none, or one that the operator has brought in another way
        return (read_bytes(os.path.join(self.path, CERTIFICATE)) or b"").decode("ascii", "replace")

    def model_files(self) -> list[str]:
        """Return the paths on the host of the model files that config.json names."""
        config = read_json(os.path.join(self.path, CONFIG))
        return [
            os.path.join(self.models_dir, text[len(IN_CONTAINER) :])
            for text in strings_in(config)
            if text.startswith(IN_CONTAINER)
        ]

    def models(self) -> dict[str, str]:
        """Return the sha256 of each model file that config.json names, as recorded when it was verified."""
        records = {os.path.basename(path): read_record(path) for path in self.model_files()}
        return {name: record["sha256"] for name, record in records.items() if record}

    def held_models(self) -> dict[str, str]:
        """Return the model files it was proved with that were replaced since and are held: sha256 by path."""
        contents = self.proved.get("models", {})
        wanted = {path: contents.get(os.path.basename(path), "") for path in self.model_files()}
        return {path: sha256 for path, sha256 in wanted.items() if is_held(os.path.dirname(path), sha256)}

    def is_in_place(self) -> bool:
        """Whether the files on the host are those of this release."""
        return all(read_bytes(source) == read_bytes(target) for source, target in self.files())

    def was_edited_before(self, started: str) -> bool:
        """Whether a container that was started then (str, as Docker says it) has read other files."""
        seconds = calendar.timegm(time.strptime(started[:19], "%Y-%m-%dT%H:%M:%S"))
        return any(
            os.path.basename(source) in (CONFIG, CERTIFICATE, PRIVATE_KEY)
            and os.path.exists(source)
            and os.path.exists(target)
            and read_bytes(source) != read_bytes(target)
            and os.stat(target).st_ctime < seconds
            for source, target in self.files()
        )

    def has_leftovers(self) -> bool:
        """Whether something is left of files that were to be put in place when the host went down."""
        return any(os.path.lexists(f"{target}.new") for _source, target in self.files())

    def put_in_place(self) -> None:
        """Copy all files to the host: all of them, or none when there is no room. Errors: OSError."""
        copies = []
        gone = []
        try:
            for source, target in self.files():
                if not os.path.exists(source):
                    gone += [target, f"{target}.new"]
                    continue
                copies.append((f"{target}.new", target))
                copy_with_owner(source, f"{target}.new")
                with open(f"{target}.new", "rb") as file:
                    os.fsync(file.fileno())
            for copy, target in copies:
                os.replace(copy, target)
            for target in gone:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
        except OSError:
            for copy, _target in copies:
                with contextlib.suppress(OSError):
                    os.unlink(copy)
            raise


def kept_ports(state_dir: str) -> list[int]:
    """Return the ports of all releases of all instances that a host keeps.

    Arguments: state_dir (str), the directory with them; it need not exist.
    Errors: none; a release that cannot be read has no port.
    """
    configs = glob.glob(os.path.join(glob.escape(state_dir), "*", "releases", "*", "config.json"))
    ports = {read_json(path).get("port") for path in configs}
    return sorted(port for port in ports if isinstance(port, int))


def are_the_same(before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether no model file has changed; of one whose sha256 was not known before nobody can tell."""
    return all(before.get(name, sha256) == sha256 for name, sha256 in after.items())


class Instance:
    """An instance on this host.

    Arguments:
        name (str): of the container and of the unit.
        state_dir (str): directory with the releases of all instances.
        run (callable): takes a command (list of str), returns (status, output, errors).
        docker_socket (str): where Docker is asked.
        timeout (int): seconds that a model may take to be loaded and to answer.
        units (str): directory of the operator's units.
    """

    def __init__(
        self,
        name: str,
        state_dir: str,
        run: Callable[[list[str]], tuple[int, str, str]],
        docker_socket: str = "/run/docker.sock",
        timeout: int = 900,
        units: str = "/etc/systemd/system",
    ) -> None:
        self.name = name
        self.path = os.path.join(state_dir, name)
        self._run = run
        self._docker_socket = docker_socket
        self._timeout = timeout
        self._unit = os.path.join(units, f"{name}.service")
        # Of all instances: they may share a model file.
        self._proofs = [os.path.join(glob.escape(state_dir), "*", GOOD, PROVED)]

    # ---- what there is

    def release(self, identifier: str) -> Release:
        """Return a release by its id. Errors: Problem."""
        release = Release(os.path.join(self.path, "releases", identifier))
        if not release.record:
            known = ", ".join(one.id for one in self.releases()) or "none"
            raise Problem(f"{self.name} has no release {identifier} on this host; there are: {known}")
        return release

    def releases(self) -> list[Release]:
        """Return all releases, the oldest first."""
        directory = os.path.join(self.path, "releases")
        names = os.listdir(directory) if os.path.isdir(directory) else []
        releases = [Release(os.path.join(directory, name)) for name in sorted(names)]
        return [one for one in releases if one.record]

    def good(self) -> Release | None:
        """Return the last release that was proved."""
        link = os.path.join(self.path, GOOD)
        release = Release(os.path.realpath(link)) if os.path.islink(link) else None
        return release if release and release.record else None

    def trying(self) -> dict[str, Any]:
        """Return what is being tried, or was when a run was cut off; empty for nothing."""
        return read_json(os.path.join(self.path, TRYING))

    def running(self) -> dict[str, str]:
        """Return what is known of the running container, {} when none runs.

        label, image, id, started, api_key, home (the directory that is /llamacpp there), address and port
        (that it is published on).
        """
        try:
            found = docker_runs(self._docker_socket) and ask_docker(
                self._docker_socket, f"/containers/{quote(self.name)}/json"
            )
        except ERRORS:
            found = None
        if not found or not found["State"]["Running"]:
            return {}
        config = found["Config"]
        keys = [entry.partition("=")[2] for entry in config["Env"] or [] if entry.startswith("API_KEY=")]
        homes = [one["Source"] for one in found.get("Mounts") or [] if one["Destination"] == "/llamacpp"]
        ports = (found.get("HostConfig") or {}).get("PortBindings") or {}
        published = [one for bindings in ports.values() for one in bindings or []]
        return {
            "label": (config["Labels"] or {}).get(OWN_LABEL, ""),
            "image": config["Image"],
            "id": found["Id"],
            "started": found["State"]["StartedAt"],
            "api_key": keys[0] if keys else "",
            "home": homes[0] if homes else "",
            "address": published[0]["HostIp"] if published else "",
            "port": published[0]["HostPort"] if published else "",
        }

    def is_there(self) -> bool:
        """Whether anything of it is on the host."""
        return self.has_unit() or bool(self.good() or self.releases())

    def has_unit(self) -> bool:
        """Whether a unit of its name is there."""
        return os.path.lexists(self._unit)

    def unit(self) -> dict[str, str]:
        """Return what systemd says of the unit: ActiveState, UnitFileState."""
        _status, output, _errors = self._run(
            ["systemctl", "show", "--property=ActiveState,UnitFileState", f"{self.name}.service"]
        )
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def facts(self, api_key: str) -> dict[str, Any]:
        """Return how the instance is, without secrets.

        Arguments: api_key (str) that clients are to send.
        """
        running, good, unit = self.running(), self.good(), self.unit()
        return {
            "running": {key: running[key] for key in ("label", "image", "id", "started") if running},
            "key_is_wanted": running.get("api_key", "") == api_key,
            "good": dict(good.record, proved=good.proved.get("at", "")) if good else {},
            "is_in_place": bool(good and good.is_in_place()),
            "models_are_the_same": bool(good and are_the_same(good.proved.get("models", {}), good.models())),
            "is_active": unit.get("ActiveState") == "active",
            "is_enabled": unit.get("UnitFileState") == "enabled",
            "trying": self.trying(),
            "releases": [
                dict(
                    one.record,
                    proved=one.proved.get("at", ""),
                    number=one.order()[0],
                    good=bool(good and one.id == good.id),
                )
                for one in self.releases()
            ],
        }

    # ---- what is done

    @contextlib.contextmanager
    def locked(self):
        """Keep other runs from changing the instance. Errors: Problem."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        with open(os.path.join(self.path, ".lock"), "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "just begun"
                raise Problem(
                    f"another run is changing {self.name} ({holder}); nothing was touched by this one."
                    " Wait for the end of that one, and run again"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on this host, since {now()}")
            file.flush()
            yield
            file.truncate(0)

    def try_release(
        self, identifier: str, with_its_models: bool = False, instead_of: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Have the instance run a release, and each of its models answer; or what ran before.

        Arguments: identifier (str) of the release; with_its_models (bool), whether model files that were
        replaced since it was proved get back what they had, where that is still held; instead_of (list of
        str), instances that are to go away: those that have its port are stopped before, start again with
        what served before, and are removed when it is accepted.
        Returns a dict: restarted (bool), down_s (float), probed (seconds by alias).
        Errors: Problem, after what served before serves again, or with what keeps it from that.
        """
        with self.locked():
            release = self.release(identifier)
            self._check(release, release.held_models() if with_its_models else {})
            cut_off = self.trying()
            before = self._before(cut_off)
            stopped = [
                name
                for name in instead_of
                # A run that was cut off may have stopped it.
                if name in cut_off.get("instead_of", ())
                or self._other(name).has_port(str(urlsplit(release.url).port))
            ]
            write_json(
                os.path.join(self.path, TRYING),
                {
                    "release": release.id,
                    "before": before.id if before else "",
                    "since": now(),
                    "instead_of": stopped,
                },
            )
            since = time.time()
            try:
                # A container that goes on running has been asked before, unless a run was cut off in that.
                is_proved = before is not None and before.label == release.label and not cut_off
                for name in stopped:
                    self._other(name).stop()
                return self._serve(release, before, is_proved, with_its_models)
            except Exception as error:  # whatever it is, what served before must serve again
                log = self._log(since)
                ending = self._restore(before, stopped)
                raise Problem(_told(f"{error}", ending, self.name, log)) from error

    def _other(self, name: str) -> Instance:
        """Return another instance on this host."""
        return Instance(
            name,
            os.path.dirname(self.path),
            self._run,
            self._docker_socket,
            self._timeout,
            os.path.dirname(self._unit),
        )

    def has_port(self, port: str) -> bool:
        """Whether it publishes a port of the host, or goes on trying to."""
        good = self.good()
        is_its_own = good is not None and str(urlsplit(good.url).port) == port
        return self.running().get("port") == port or (
            is_its_own and self.unit().get("ActiveState") in ("active", "activating")
        )

    def stop(self) -> None:
        """Have the instance not run until it is started again. Errors: Problem."""
        with self.locked():
            self._systemctl("stop", f"{self.name}.service")

    def start(self) -> str:
        """Have the last good release run again, and return a sentence about it. Errors: Problem."""
        with self.locked():
            good = self.good()
            if not good:
                self._systemctl("start", f"{self.name}.service")
                return f" {self.name} runs again."
            probed = self._serve(good, None, False, with_its_models=True)["probed"]
            told = f", proved by answers of {', '.join(probed)}" if probed else ""
            return f" {self.name} serves again: release {good.id}{told}."

    def _before(self, cut_off: dict[str, Any]) -> Release | None:
        """Return what to go back to, None for nothing.

        Arguments: cut_off (dict), what a run was cut off in.
        """
        good = self.good()
        if good or not cut_off:
            return good or self._adopt()
        # What runs now may be what was tried.
        return self.release(cut_off["before"]) if cut_off["before"] else None

    def restore(self, identifier: str, why: str) -> None:
        """Put back what ran before a release was tried.

        Arguments: identifier (str) of the tried release; why (str) it is not wanted.
        Errors: always Problem, with why, and with what serves now.
        """
        with self.locked():
            trying = self.trying()
            if trying.get("release") != identifier:
                raise Problem(why)
            before = self.release(trying["before"]) if trying["before"] else None
            ending = self._restore(before, trying.get("instead_of", ()))
            raise Problem(_told(why, ending, self.name, ""))

    def accept(self, identifier: str, keep: int) -> bool:
        """Note that a release, which runs now, is the last good one; and remove the oldest of the others.

        Arguments: identifier (str) of the release; keep (int), how many to keep.
        Returns whether another one was the last good one before. Errors: Problem, OSError.
        """
        with self.locked():
            release = self.release(identifier)
            if self.running().get("label") != release.label:
                raise Problem(f"{self.name} does not run release {identifier}; run again")
            before = self.good()
            number = 1 + max((one.order()[0] for one in self.releases()), default=0)
            proof = {"number": number, "at": now(), "models": release.models()}
            write_json(os.path.join(release.path, PROVED), proof)
            link = os.path.join(self.path, GOOD)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{link}.new")
            os.symlink(os.path.join("releases", release.id), f"{link}.new")
            os.replace(f"{link}.new", link)
            for name in self.trying().get("instead_of", ()):
                self._other(name).remove()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, TRYING))
            self._forget(release, before, keep)
            forget(release.models_dir, self._proofs)
            return before is None or before.id != release.id

    def _forget(self, good: Release, before: Release | None, keep: int) -> None:
        """Remove old releases that were never proved, and of the others all but the last ones."""
        kept = {good.id, before.id if before else good.id}
        proved = sorted((one for one in self.releases() if one.proved), key=Release.order)
        kept.update(one.id for one in proved[-max(keep, 2) :])
        directory = os.path.join(self.path, "releases")
        for entry in list(os.scandir(directory)):
            # A young one may be that of a run that has not come to try it yet.
            age = abs(time.time() - entry.stat().st_mtime)  # of the future, where the clock was set back
            is_young = not Release(entry.path).proved and age < YOUNG
            if entry.name not in kept and not is_young:
                # First of all: what is left of a release that is half gone must not be one.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(entry.path, RECORD))
                shutil.rmtree(entry.path)

    def _check(self, release: Release, held: dict[str, str]) -> None:
        """Find out before anything is touched what a release lacks. Errors: Problem.

        Arguments: release (Release); held (dict), the model files that are to be brought back.
        """
        if os.path.islink(self._unit) and os.path.realpath(self._unit) == "/dev/null":
            raise Problem(
                f"{self.name}.service is masked, so somebody wants it not to run; nothing was touched."
                f" systemctl unmask {self.name}, and run again"
            )
        try:
            image = ask_docker(self._docker_socket, f"/images/{quote(release.image)}/json")
        except ERRORS as error:
            raise Problem(f"Docker does not answer ({error}); nothing of {self.name} was touched") from error
        if not image:
            raise Problem(
                f"the image {release.image} of release {release.id} is not on this host; nothing was touched."
                " Build or load it (site.yml does, with the settings of that time), and run again"
            )
        missing = [path for path in release.model_files() if not os.path.exists(path) and path not in held]
        if missing:
            raise Problem(
                f"release {release.id} of {self.name} needs {', '.join(missing)}, which is not on this host;"
                " nothing was touched. Fetch it (site.yml --tags models), and run again"
            )

    def _adopt(self) -> Release | None:
        """Return, as a release, what runs but was not deployed by releases; None when nothing runs."""
        running = self.running()
        home = running.get("home", "")
        config = read_json(os.path.join(home, CONFIG)) if home else {}
        if not config or not os.path.isfile(self._unit):
            return None
        path = os.path.join(self.path, "releases", f"{now().replace(':', '-')}-found")
        os.makedirs(path, mode=0o700, exist_ok=True)
        models = [config["model"]] if "model" in config else config.get("models", [])
        names = ("model_alias", "alias", "model", "path")
        aliases = [next(model[name] for name in names if model.get(name)) for model in models]
        server = config.get("server", config)
        scheme = "https" if server.get("ssl_certfile") else "http"
        address = running["address"].replace("0.0.0.0", "") or "127.0.0.1"
        record = {
            "id": os.path.basename(path),
            "instance": self.name,
            "created": now(),
            "by": "found on the host",
            "commit": "",
            "label": running["label"],
            "content": "",
            "image": running["image"],
            "url": f"{scheme}://{address}:{server.get('port', 8000)}",
            "models": aliases,
            "probe": aliases,
            "models_dir": os.path.join(home, "model"),
            "files": {
                CERTIFICATE: os.path.join(home, CERTIFICATE),
                PRIVATE_KEY: os.path.join(home, PRIVATE_KEY),
                CONFIG: os.path.join(home, CONFIG),
                "instance.service": self._unit,
                "instance.env": f"/etc/llamacpp/{self.name}.env",
            },
        }
        for name, target in record["files"].items():
            if os.path.exists(target):
                copy_with_owner(target, os.path.join(path, name))
        write_json(os.path.join(path, RECORD), record)
        return Release(path)

    def _serve(
        self, release: Release, before: Release | None, is_proved: bool, with_its_models: bool
    ) -> dict[str, Any]:
        """Put a release in place, have systemd run it, and ask its models.

        Arguments: release (Release); before (Release), what is known to have served; is_proved (bool),
        whether the container has been asked before; with_its_models (bool), see try_release.
        Returns the dict of try_release. Errors: Problem, Broken, OSError.
        """
        running = self.running()
        held = release.held_models()
        # While something is held, nobody knows which of the two contents a container has read.
        is_unclear = bool(held or (before and before.held_models()))
        if with_its_models:
            for path, sha256 in held.items():
                bring_back(path, sha256, self._proofs)
        proved = before.proved.get("models", {}) if before else {}
        is_running = (
            running.get("label") == release.label
            and running.get("api_key") == release.api_key()
            and not is_unclear
            and are_the_same(proved, release.models())
            and self.unit().get("ActiveState") == "active"
            and not release.was_edited_before(running["started"])
        )
        # Going back must not need room on a disk that has none.
        if not release.is_in_place() or release.has_leftovers():
            release.put_in_place()
        self._systemctl("daemon-reload")
        self._systemctl("enable", f"{self.name}.service")
        down = 0.0
        if not is_running:
            started = time.monotonic()
            self._systemctl("restart", f"{self.name}.service")
            down = time.monotonic() - started
        probed = {} if is_running and is_proved else self._probe(release)
        return {"restarted": not is_running, "down_s": round(down, 2), "probed": probed}

    def _systemctl(self, command: str, *arguments: str) -> None:
        """Errors: Problem."""
        status, output, errors = self._run(["systemctl", command, *arguments])
        if status:
            words = "did not become ready" if command == "restart" else f"systemctl {command} failed"
            said = (errors or output).strip().splitlines() or [f"status {status}"]
            raise Problem(f"{self.name} {words}: {said[0]}")

    def _probe(self, release: Release) -> dict[str, float]:
        """Return the seconds that each model took to answer a real question. Errors: Broken."""
        client = Client(release.url, release.api_key(), self._timeout, release.certificate())
        seconds = {}
        # The first one last: it is the one that is loaded after a start, and stays so.
        for alias in [*release.probe[1:], *release.probe[:1]]:
            started = time.monotonic()
            try:
                check_answer(client, alias, QUESTION, ANSWER_TOKENS)
            except Broken as broken:
                raise Broken(
                    f"{self.name} has started, but its model {alias} does not answer: {broken}"
                ) from broken
            seconds[alias] = round(time.monotonic() - started, 2)
        return seconds

    def _log(self, since: float) -> str:
        """Return the last lines that the instance has written since a time (seconds of the epoch)."""
        _status, output, _errors = self._run(
            [
                "journalctl",
                f"--unit={self.name}.service",
                f"--since=@{int(since)}",
                f"--lines={LOG_LINES}",
                "--no-pager",
                "--output=cat",
            ]
        )
        return output.strip()

    def _restore(self, before: Release | None, stopped: Sequence[str]) -> str:
        """Put a release back, and return a sentence about what serves now.

        Arguments: before (Release); stopped (list of str), instances that were stopped for another release.
        """
        since = time.time()
        try:
            if before is None:
                if self.has_unit():
                    self._systemctl("disable", "--now", f"{self.name}.service")
                ending = f"Nothing was serving before as {self.name}; it is stopped."
            else:
                held = before.held_models()
                # What runs now is asked whatever it has read, so that its proof does not matter.
                found = self._serve(before, None, False, with_its_models=True)
                what = "serves again" if found["restarted"] else "was not restarted and goes on serving"
                ending = (
                    f"What served before {what}: release {before.id} (image {before.image}), proved by"
                    f" answers of {', '.join(found['probed'])}."
                )
                if held:
                    names = ", ".join(sorted(map(os.path.basename, held)))
                    ending += f" The model files in place are those from before, too: {names}."
                    forget(before.models_dir, self._proofs)
            for name in stopped:
                ending += self._other(name).start()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, TRYING))
            return ending
        except Exception as error:
            name = before.id if before else "nothing"
            return (
                f"What was before ({name}) could NOT be put back: {error}. docs/recovery.md says what to do."
                f" Its last log lines:\n{self._log(since)}"
            )

    def remove(self) -> bool:
        """Have the instance be gone: container, unit, files, releases. Model files stay.

        Returns whether anything was there. Errors: Problem, OSError.
        """
        if not os.path.isdir(self.path) and not self.has_unit():
            return False
        with self.locked():
            good = self.good()
            releases = [*self.releases(), *([good] if good else [])]
            targets = {target for release in releases for _source, target in release.files()} | {self._unit}
            directories = {release.models_dir for release in releases}
            there = self.is_there()
            if self.has_unit():
                self._systemctl("disable", "--now", f"{self.name}.service")
            elif self.running():
                self._systemctl("stop", f"{self.name}.service")
            for target in sorted(targets):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
            # The mount point of the model files is in it; where these are themselves, it stays.
            for home in sorted(
                {os.path.dirname(target) for target in targets if os.path.basename(target) == CONFIG}
            ):
                for directory in (os.path.join(home, "model"), home):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
            self._systemctl("daemon-reload")
        shutil.rmtree(self.path)
        for directory in sorted(directories):
            forget(directory, self._proofs)
        return there


def _told(what: str, ending: str, name: str, log: str) -> str:
    """Return the message of a change that did not happen."""
    lines = [f"{what}", ending]
    if log:
        lines += [f"The last log lines of {name} meanwhile:", log]
    lines.append(f"More: journalctl -u {name}, and docs/recovery.md")
    return "\n".join(lines)
