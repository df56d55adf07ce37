"""Releases: whatever breaks at whatever moment, what served before serves, and the operator is told.

The host around them is played here: real files, a server that answers as the container that runs now would,
Docker on a socket, and systemctl. That the real ones behave like that is for the Molecule scenario faults.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import itertools
import json
import os
import re
import shutil
import socketserver
import ssl
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from ansible.module_utils import gguf, releases, store
from ansible.module_utils.releases import Instance, Problem, Release
from certificates import certify, make_key, text_of

PROJECT = Path(__file__).resolve().parents[2]
NAME = "llm-under-test"  # no host has a key in /etc/llamacpp/llm-under-test.env
MODELS = ("one", "two", "three")
IMAGE = "llamacpp:1"
KEY = "sk-very-secret"
UNIT = """\
[Service]
ExecStart=docker run --name={name} --label=io.ansible-llamacpp.release={label} {image}
# {note}
"""
# Two pairs of certificate and private key. One is past its end: it is still the one that was deployed.
KEYS = make_key(), make_key()
PAIRS = tuple((certify(key, ends=-1), text_of(key)) for key in KEYS)
JOB_FAILED = f"Job for {NAME}.service failed because the control process exited with error code."


class Killed(BaseException):
    """The process is gone, as after kill -9 or a power cut: no handler runs, no file is cleaned up."""


def now_and(seconds):
    """A time as Docker says it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(time.time() + seconds))


class World:
    """A host with one instance: its files, systemd, Docker and the server that runs on it."""

    def __init__(self, stage, path):
        self.stage, self.path = stage, path
        self.state, self.models, self.home = path / "state", path / "models", path / "home" / NAME
        self.unit_file = path / "units" / f"{NAME}.service"
        self.config_file = self.home / "config.json"
        self.env_file = path / "env" / f"{NAME}.env"
        for directory in (self.models, self.home / "model", path / "units", path / "env"):
            directory.mkdir(parents=True)
        for model in (*MODELS, "mmproj"):
            self.bring_model(model, f"weights of {model}")
        self.images = {IMAGE}
        self.docker_answers = True
        self.address = stage.addresses[0]
        self.faults = {}  # by label of a container: "start", or how it answers, or that by alias
        self.crashes = False  # whether the others are between a crash and the next start
        self.others = {}  # by name, whether another instance runs, on the same port
        self.bad_weights = set()  # contents of model files whose server answers 500
        self.refusals = {}  # by command of systemctl: what it returns in place of doing it
        self.refuses_once = {}
        self.loaded = None  # the unit as systemd knows it
        self.enabled = False
        self.container = None
        self.started = 0
        self.commands = []
        self.answered = []  # (number of the container, alias, status), in the order of the questions
        self.journal = []
        stage.world = self

    # ---- what is on the host

    def bring_model(self, model, content):
        path = self.models / f"{model}.gguf"
        path.write_text(content)
        gguf.write_record(
            str(path), hashlib.sha256(content.encode()).hexdigest(), f"https://m.example/{model}"
        )

    def replace_model(self, model, content):
        """Have another content take a model file's name, as gguf_fetch does."""
        path = str(self.models / f"{model}.gguf")
        Path(f"{path}.new").write_text(content)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        store._put(f"{path}.new", path, sha256, "", [str(self.state / "*" / "good" / "proved.json")])

    def held(self):
        """The contents of replaced model files that are still there."""
        return sorted(path.read_text() for path in self.models.glob(".previous/*.gguf"))

    def instance(self):
        """What a new run works with."""
        return Instance(NAME, str(self.state), self.run, self.stage.socket, 5, str(self.path / "units"))

    def make(self, identifier, setting="4096", key="", note="", image=IMAGE, probe=MODELS, tls=None):
        """Write a release as tasks/release.yml does; another note does not make another container."""
        config = self.config(setting, tls)
        label = hashlib.sha256(f"{config}{image}{tls}".encode()).hexdigest()
        unit = UNIT.format(name=NAME, label=label, image=image, note=note)
        path = self.state / NAME / "releases" / identifier
        path.mkdir(parents=True, mode=0o700)
        (path / "config.json").write_text(config)
        (path / f"{NAME}.service").write_text(unit)
        if key:
            (path / f"{NAME}.env").write_text(f"API_KEY={key}\n")
            (path / f"{NAME}.env").chmod(0o600)
        for name, text in zip(("tls.crt", "tls.key"), tls or (), strict=False):
            (path / name).write_text(text)
            (path / name).chmod(0o640)
        record = {
            "id": identifier,
            "instance": NAME,
            "created": "2026-11-23T02:00:00Z",
            "by": "somebody@somewhere",
            "commit": "1a2b3c4d5e6f",
            "label": label,
            "content": hashlib.sha256(f"{label} {unit}".encode()).hexdigest(),
            "image": image,
            "url": self.url(tls),
            "models": list(MODELS),
            "probe": list(probe),
            "models_dir": str(self.models),
            "files": {
                "tls.crt": str(self.home / "tls.crt"),
                "tls.key": str(self.home / "tls.key"),
                "config.json": str(self.config_file),
                f"{NAME}.service": str(self.unit_file),
                f"{NAME}.env": str(self.env_file),
            },
        }
        (path / "release.json").write_text(json.dumps(record))
        return Release(str(path))

    def make_other(self, name="old"):
        """Have another instance run on the same port, as an earlier run has deployed it."""
        path = self.state / name / "releases" / "x"
        path.mkdir(parents=True)
        targets = {"config.json": self.path / "home" / name / "config.json"}
        targets[f"{name}.service"] = self.path / "units" / f"{name}.service"
        targets["config.json"].parent.mkdir()
        for file, target in targets.items():
            (path / file).write_text("{}")
            target.write_text("{}")
        record = {
            "id": "x",
            "label": "other",
            "url": "http://{}:{}".format(*self.address),
            "probe": [],
            "models_dir": str(self.models),
            "files": {file: str(target) for file, target in targets.items()},
        }
        (path / "release.json").write_text(json.dumps(record))
        (self.state / name / "good").symlink_to("releases/x")
        self.others[name], self.others_address = True, self.address

    def others_systemctl(self, command, name):
        if command in ("restart", "start") and self.container:
            return 1, "", "port is already allocated"
        if command in ("stop", "disable"):
            self.others[name] = False
        elif command in ("restart", "start"):
            self.others[name] = True
        state = "inactive" if not self.others[name] else "activating" if self.crashes else "active"
        return 0, f"ActiveState={state}\n", ""

    def url(self, tls):
        address = self.stage.tls_address if tls else self.address
        return "{}://{}:{}".format("https" if tls else "http", *address)

    def config(self, setting, tls=None):
        models = [{"model": f"/llamacpp/model/{name}.gguf", "model_alias": name} for name in MODELS]
        models[2]["clip_model_path"] = "/llamacpp/model/mmproj.gguf"
        config = {"port": self.address[1], "n_ctx": setting, "models": models}
        if tls:
            config["port"] = self.stage.tls_address[1]
            config |= {"ssl_certfile": "/llamacpp/tls.crt", "ssl_keyfile": "/llamacpp/tls.key"}
        return json.dumps(config)

    def deploy(self, *arguments, **details):
        """Have a new release be tried and accepted, as site.yml does."""
        release = self.make(*arguments, **details)
        self.instance().try_release(release.id)
        self.instance().accept(release.id, 10)
        return release

    def deploy_without_releases(self):
        """Have an instance run as an older version of this project has left it."""
        self.config_file.write_text(self.config("of an older version"))
        self.unit_file.write_text(UNIT.format(name=NAME, label="old-label", image=IMAGE, note="old"))
        for command in ("daemon-reload", "enable", "restart"):
            assert self.systemctl(command)[0] == 0

    def files(self):
        """What is on the host, besides releases: content and mode by path."""
        paths = [
            path for name in ("units", "home", "env", "models") for path in (self.path / name).rglob("*")
        ]
        return {
            str(path.relative_to(self.path)): (path.read_bytes(), path.stat().st_mode)
            for path in paths
            if path.is_file()
        }

    def releases(self):
        return sorted(os.listdir(self.state / NAME / "releases"))

    def trying(self):
        return self.instance().trying()

    def good(self):
        good = self.instance().good()
        return good and good.id

    def age(self, *identifiers):
        """Let releases be of yesterday."""
        for identifier in identifiers:
            os.utime(self.state / NAME / "releases" / identifier, (time.time() - 86400,) * 2)

    def aliases_asked(self):
        return [alias for _number, alias, _status in self.answered]

    def did(self, command):
        """How often systemctl was called so."""
        return sum(words[:2] == ["systemctl", command] for words in self.commands)

    def touched(self):
        """What must be the same after a run that was to touch nothing."""
        return self.files(), self.container, self.enabled, self.loaded, self.good(), self.trying()

    def check_serves(self, release):
        """The files of a release are in place, and its container runs with them; nothing is half."""
        for source, target in release.files():
            assert releases.read_bytes(target) == releases.read_bytes(source), target
            if os.path.exists(source):
                assert os.stat(target).st_mode == os.stat(source).st_mode, target
        assert self.container, "nothing runs"
        assert self.container["label"] == release.label
        assert self.container["config"] == Path(release.path, "config.json").read_text()
        assert self.container["key"] == release.api_key()
        assert self.loaded == self.unit_file.read_text(), "systemd does not know the unit"
        assert self.enabled

    def check_proved(self):
        """Each model has been asked since the container was started, and the last answer was good."""
        found = {
            alias: status for number, alias, status in self.answered if number == self.container["number"]
        }
        assert found == dict.fromkeys(MODELS, 200)

    # ---- systemd

    def run(self, command):
        """Play a command."""
        self.commands.append(command)
        if command[0] == "journalctl":
            assert f"--unit={NAME}.service" in command
            return 0, "\n".join(self.journal) + "\n", ""
        assert command[0] == "systemctl"
        if command[1] == "disable":
            assert "--now" in command
        other = command[-1].removesuffix(".service")
        if other in self.others:
            return self.others_systemctl(command[1], other)
        assert command[1] == "daemon-reload" or command[-1] == f"{NAME}.service"
        return self.systemctl(command[1])

    def systemctl(self, command):
        if command in self.refuses_once:
            return self.refuses_once.pop(command)
        if command in self.refusals:
            return self.refusals[command]
        if command == "show":
            active = "active" if self.container else "failed" if self.loaded else "inactive"
            enabled = "enabled" if self.enabled else "disabled" if self.unit_file.exists() else ""
            return 0, f"ActiveState={active}\nUnitFileState={enabled}\n", ""
        if command == "daemon-reload":
            self.loaded = self.unit_file.read_text() if self.unit_file.exists() else None
            return 0, "", ""
        if self.loaded is None and self.unit_file.exists():
            self.loaded = self.unit_file.read_text()
        if self.loaded is None:
            return 1, "", f"Failed to {command} unit: Unit file {NAME}.service does not exist.\n"
        if command == "enable":
            self.enabled = True
        elif command == "stop":
            self.container = None
        elif command == "disable":
            self.enabled, self.container = False, None
        else:
            assert command == "restart"
            return self.start()
        return 0, "", ""

    def start(self):
        """Start the container of the unit that systemd knows."""
        self.container = None
        label = re.search("release=(.*) ", self.loaded)[1]
        if any(self.others.values()):
            self.journal.append("port is already allocated")
            return 1, "", f"{JOB_FAILED}\n"
        if not self.config_file.exists() or self.faults.get(label) == "start":
            self.journal.append("error: failed to load model: out of memory")
            return 1, "", f'{JOB_FAILED}\nSee "journalctl -xeu {NAME}.service" for details.\n'
        config = json.loads(self.config_file.read_text())
        files = [self.home / os.path.basename(config[name]) for name in config if name.startswith("ssl_")]
        self.started += 1
        key = self.env_file.read_text().strip().removeprefix("API_KEY=") if self.env_file.exists() else ""
        self.container = {
            "number": self.started,
            "label": label,
            "image": re.search("release=.* (.*)\n", self.loaded)[1],
            "config": self.config_file.read_text(),
            "key": key,
            "tls": tuple(file.read_text() for file in files),
            "started": now_and(0),
            "models": {path.stem: path.read_text() for path in self.models.glob("*.gguf")},
        }
        return 0, "", ""

    # ---- Docker, and the server in the container

    def docker(self, path):
        """What Docker answers to GET path, None for 404."""
        if path.startswith("/images/"):
            return {"Id": "sha256:1"} if path[len("/images/") : -len("/json")] in self.images else None
        now = self.container
        other = re.fullmatch("/containers/(.*)/json", path)[1]
        if self.others.get(other) and not self.crashes:
            now = {"number": 0, "started": now_and(0), "image": IMAGE, "label": "other", "key": ""}
        elif other != NAME or not now:
            return None
        host, port = self.others_address if other in self.others else self.address
        published = {f"{port}/tcp": [{"HostIp": host, "HostPort": str(port)}]}
        return {
            "Id": f"{now['number']:064}",
            "State": {"Running": True, "StartedAt": now["started"]},
            "Config": {
                "Image": now["image"],
                "Labels": {"io.ansible-llamacpp.release": now["label"]},
                "Env": ["PATH=/usr/bin", *([f"API_KEY={now['key']}"] if now["key"] else [])],
            },
            "HostConfig": {"PortBindings": published},
            "NetworkSettings": {"Ports": published},
            "Mounts": [
                {"Source": str(self.models), "Destination": "/llamacpp/model"},
                {"Source": str(self.home), "Destination": "/llamacpp"},
            ],
        }

    def answer(self, alias, key):
        """Return (status, body) of the server to a question; no status when it goes away."""
        now = self.container
        if not now:
            return None, b""
        fault = self.faults.get(now["label"])
        fault = fault.get(alias) if isinstance(fault, dict) else fault
        fault = None if fault == "other certificate" else fault  # whoever asks all the same is answered
        aliases = [model["model_alias"] for model in json.loads(now["config"])["models"]]
        if self.bad_weights & set(now["models"].values()):
            fault = "500"
        choice = {"message": {"content": "" if fault == "empty" else f"I am {alias}."}}
        body = {"choices": [choice], "usage": {"completion_tokens": 0 if fault == "empty" else 4}}
        status = 200
        if now["key"] and key != f"Bearer {now['key']}":
            status, body = 401, {"error": "Invalid API key"}
        elif alias not in aliases:
            status, body = 404, {"error": "no such model"}
        elif fault == "500":
            status, body = 500, {"error": "Failed to load model from file"}
        elif fault == "no usage":
            body["usage"] = {}
        elif fault in ("gone", "half"):
            status = None
        self.answered.append((now["number"], alias, fault or status))
        return status, b"" if fault == "gone" else json.dumps(body).encode()


class Stage:
    """Where worlds are played, one at a time: two addresses of a server, and the socket of Docker."""

    def __init__(self, path):
        self.world = None
        self.socket = str(path / "docker.sock")
        stage = self

        class Server(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                status, text = stage.world.answer(body["model"], self.headers["Authorization"])
                if status is None and not text:
                    return  # gone, without a word
                self.send_response(status or 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text if status else text[:20])  # half: it dies while it answers

            def log_message(self, *arguments):
                pass

            def address_string(self):
                return "unix"

        class Docker(Server):
            def do_GET(self):
                found = stage.world.docker(unquote(self.path)) if stage.world.docker_answers else None
                body = json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class TlsServer(socketserver.ThreadingTCPServer):
            """Shows the certificate that the container has read at its start."""

            def get_request(self):
                connection, address = super().get_request()
                now = stage.world.container
                pair = path / "pair.pem"
                is_other = stage.world.faults.get(now["label"]) == "other certificate"
                pair.write_text("\n".join(PAIRS[1] if is_other else now["tls"]))
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(pair)
                return context.wrap_socket(connection, server_side=True), address

        self.servers = [
            socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server),
            socketserver.ThreadingTCPServer(("127.0.0.2", 0), Server),
            TlsServer(("127.0.0.1", 0), Server),
            socketserver.ThreadingUnixStreamServer(self.socket, Docker),
        ]
        self.addresses = [server.server_address for server in self.servers[:2]]
        self.tls_address = self.servers[2].server_address
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.close()


@pytest.fixture
def world(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "docker_runs", lambda _socket: stage.world.docker_answers)
    monkeypatch.setattr(os, "fsync", lambda _file: None)  # here, its time is all there is to see of it
    return World(stage, tmp_path / "world")


@pytest.fixture
def clock(monkeypatch):
    """A clock for the records, of which each look is a second later."""
    seconds = itertools.count()
    monkeypatch.setattr(releases, "now", lambda: f"2026-11-23T02:00:{next(seconds):02}Z")


def failure(action, *arguments):
    """Return the text of the problem that an action ends with."""
    with pytest.raises(Problem) as caught:
        action(*arguments)
    return str(caught.value)


def test_the_releases_of_these_tests_are_like_those_of_the_role(world):
    tasks = yaml.safe_load((PROJECT / "roles/llamacpp_server/tasks/release.yml").read_text())
    written = [task["vars"]["__llamacpp_server_record"] for task in tasks if "vars" in task]
    assert [list(record) for record in written] == [list(world.make("a").record)]
    keys = re.findall(r"[{,]\s*([^{},]+?):", written[0]["files"])
    names = [key.replace("__llamacpp_server_name ~ '", f"'{NAME}").strip("'") for key in keys]
    assert names == list(world.make("b").record["files"])


# ---- a change that succeeds


def test_a_first_release_is_put_in_place_started_and_asked_the_first_model_last(world):
    release = world.make("a", key=KEY)
    found = world.instance().try_release("a")
    world.check_serves(release)
    assert world.aliases_asked() == ["two", "three", "one"]
    assert found["restarted"] is True
    assert list(found["probed"]) == ["two", "three", "one"]
    assert found["down_s"] >= 0
    assert world.good() is None
    assert world.instance().accept("a", 10) is True
    assert world.good() == "a"
    assert world.instance().good().proved["models"] == {
        f"{model}.gguf": hashlib.sha256(f"weights of {model}".encode()).hexdigest()
        for model in (*MODELS, "mmproj")
    }


def test_only_the_models_that_a_release_names_are_asked(world):
    world.make("a", probe=["two"])
    assert list(world.instance().try_release("a")["probed"]) == ["two"]
    assert world.aliases_asked() == ["two"]


def test_a_second_release_restarts_once_and_is_good_only_when_it_is_accepted(world):
    world.deploy("a", key=KEY)
    new = world.make("b", setting="8192")
    restarts = world.did("restart")
    world.instance().try_release("b")
    assert world.did("restart") == restarts + 1
    world.check_serves(new)
    assert not world.env_file.exists()
    assert world.good() == "a"
    assert {key: world.trying()[key] for key in ("release", "before")} == {"release": "b", "before": "a"}
    assert world.instance().accept("b", 10) is True
    assert world.good() == "b"
    assert world.trying() == {}
    assert world.did("restart") == restarts + 1


def test_what_is_tried_is_noted_before_anything_is_touched(world, monkeypatch):
    world.deploy("a")
    world.make("b", setting="8192")
    before, noted = world.files(), []
    put_in_place = Release.put_in_place

    def note(release):
        noted.append((world.trying().get("release"), world.files() == before))
        put_in_place(release)

    monkeypatch.setattr(Release, "put_in_place", note)
    world.instance().try_release("b")
    assert noted == [("b", True)]


def test_an_older_release_can_be_gone_back_to(world):
    old = world.deploy("a", key=KEY)
    world.deploy("b", setting="8192")
    world.instance().try_release("a")
    assert world.good() == "b"
    assert world.instance().accept("a", 10) is True
    assert world.good() == "a"
    world.check_serves(old)
    world.check_proved()


def test_files_that_were_damaged_by_hand_are_put_back_without_a_restart(world):
    release = world.deploy("a", key=KEY)
    asked, number = len(world.answered), world.container["number"]
    world.config_file.write_text("{}")
    world.unit_file.write_text("[Service]\n")
    world.env_file.unlink()
    world.enabled = False
    found = world.instance().try_release("a")
    assert found == {"restarted": False, "down_s": 0.0, "probed": {}}
    world.check_serves(release)
    assert world.container["number"] == number
    assert len(world.answered) == asked
    assert world.instance().accept("a", 10) is False
    assert world.trying() == {}


def test_a_configuration_that_was_edited_by_hand_and_read_does_not_go_on_serving(world):
    release = world.deploy("a")
    world.config_file.write_text(world.config("by hand"))
    world.systemctl("restart")  # systemd may do that by itself
    world.container["started"] = now_and(5)
    assert world.instance().try_release("a")["restarted"] is True
    world.check_serves(release)


def test_a_unit_that_changes_without_its_container_is_exchanged_without_a_restart(world):
    world.deploy("a")
    new = world.make("b", note="waits longer")
    assert world.instance().try_release("b")["restarted"] is False
    world.check_serves(new)
    assert world.container["number"] == 1
    assert world.instance().accept("b", 10) is True
    assert world.good() == "b"


def test_an_instance_that_is_down_is_started_though_nothing_has_changed(world):
    release = world.deploy("a")
    world.container = None
    assert world.instance().try_release("a")["restarted"] is True
    world.check_serves(release)


def test_a_container_that_systemd_does_not_run_is_started_anew(world):
    world.deploy("a")
    world.refusals["show"] = (0, "ActiveState=failed\nUnitFileState=enabled\n", "")
    assert world.instance().try_release("a")["restarted"] is True
    assert world.container["number"] == 2


def test_another_api_key_restarts_the_same_container_and_is_never_told(world):
    old = world.deploy("a", key=KEY)
    new = world.make("b", key="sk-another-secret")
    assert new.label == old.label
    assert world.instance().try_release("b")["restarted"] is True
    world.check_serves(new)
    assert world.aliases_asked()[-3:] == ["two", "three", "one"]
    told = json.dumps([world.instance().facts("sk-another-secret"), world.instance().facts(KEY)])
    world.faults[new.label] = "500"
    told += failure(world.instance().try_release, world.make("c", key="sk-a-third-secret").id)
    world.faults[new.label] = "start"
    told += failure(world.instance().try_release, "c")
    told += failure(world.instance().restore, "c", "it is slow")
    assert "sk-" not in told


def test_a_model_file_that_is_another_one_now_restarts(world):
    release = world.deploy("a")
    world.bring_model("two", "other weights")
    assert world.instance().try_release("a")["restarted"] is True
    world.check_serves(release)
    assert world.aliases_asked()[-3:] == ["two", "three", "one"]
    world.instance().accept("a", 10)
    assert world.instance().facts("")["models_are_the_same"] is True
    assert world.instance().try_release("a")["restarted"] is False


def test_a_model_file_that_is_another_one_now_restarts_also_when_the_unit_changes_with_it(world):
    world.deploy("a")
    world.bring_model("two", "other weights")
    world.make("b", note="waits longer")
    world.instance().try_release("b")
    world.instance().accept("b", 10)
    assert world.container["models"]["two"] == "other weights"


# ---- TLS


def without_tls(release):
    """Have a release be one of an earlier version, whose record says nothing of TLS."""
    for name in ("tls.crt", "tls.key"):
        del release.record["files"][name]
    Path(release.path, "release.json").write_text(json.dumps(release.record))


def test_certificate_and_key_come_with_a_release_and_its_models_are_asked_over_tls(world):
    world.deploy("a")
    new = world.deploy("b", tls=PAIRS[0])
    world.check_serves(new)
    world.check_proved()
    assert world.container["tls"] == PAIRS[0]
    assert (world.home / "tls.key").stat().st_mode & 0o777 == 0o640


def test_another_certificate_is_another_release_with_a_restart(world):
    world.deploy("a", tls=PAIRS[0])
    new = world.make("b", tls=PAIRS[1])
    assert world.instance().try_release("b")["restarted"] is True
    world.check_serves(new)
    world.check_proved()
    assert world.container["tls"] == PAIRS[1]


def test_a_server_that_shows_another_certificate_is_asked_nothing_and_taken_back(world):
    old = world.deploy("a", key=KEY)
    new = world.make("b", key=KEY, tls=PAIRS[0])
    world.faults[new.label] = "other certificate"
    told = failure(world.instance().try_release, "b")
    assert f"model two does not answer: {new.url} has another certificate than the deployed one" in told
    assert {number for number, _alias, _status in world.answered} == {1, 3}  # the second one was told no key
    world.check_serves(old)


def test_a_release_of_the_batching_server_has_its_model_and_certificate_too(world):
    release = world.make("a", tls=PAIRS[0])
    batch = {
        "server": {"ssl_certfile": "/llamacpp/tls.crt"},
        "model": {"path": "/llamacpp/model/one.gguf", "alias": "one"},
    }
    Path(release.path, "config.json").write_text(json.dumps(batch))
    assert release.certificate()
    assert [Path(path).name for path in release.model_files()] == ["one.gguf"]


def test_a_certificate_that_the_operator_has_brought_another_way_is_not_compared(world):
    release = world.make("a", tls=PAIRS[0])
    config = json.loads(Path(release.path, "config.json").read_text())
    config["ssl_certfile"] = "/somewhere/tls.crt"
    Path(release.path, "config.json").write_text(json.dumps(config))
    world.faults[release.label] = "other certificate"
    world.instance().try_release("a")
    world.check_proved()


@pytest.mark.parametrize("is_of_an_earlier_version", [False, True])
def test_going_back_to_a_release_without_tls_leaves_no_private_key(world, is_of_an_earlier_version):
    old = world.deploy("a")
    if is_of_an_earlier_version:
        without_tls(old)
    world.deploy("b", tls=PAIRS[0])
    assert world.instance().facts("")["is_in_place"] is True
    world.instance().try_release("a")
    world.check_serves(old)
    assert not (world.home / "tls.crt").exists()
    assert not (world.home / "tls.key").exists()


def test_a_release_with_tls_that_does_not_serve_leaves_no_private_key(world):
    old = world.deploy("a")
    before = world.files()
    world.faults[world.make("b", tls=PAIRS[0]).label] = "500"
    assert "serves again" in failure(world.instance().try_release, "b")
    assert world.files() == before
    world.check_serves(old)


def test_a_release_with_tls_can_be_gone_back_to(world):
    old = world.deploy("a", tls=PAIRS[0])
    world.deploy("b")
    world.instance().try_release("a")
    world.check_serves(old)
    world.check_proved()


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_file_of_tls_that_was_edited_by_hand_and_read_does_not_go_on_serving(world, name):
    release = world.deploy("a", tls=PAIRS[0])
    (world.home / name).write_text("by hand")
    assert world.instance().facts("")["is_in_place"] is False
    world.container["started"] = now_and(5)
    assert world.instance().try_release("a")["restarted"] is True
    world.check_serves(release)


def test_an_instance_with_tls_is_removed_with_all_its_files(world):
    world.deploy("a", tls=PAIRS[0])
    assert world.instance().remove() is True
    assert not world.home.exists()


def test_after_a_kill_at_any_step_of_going_without_tls_the_next_run_leaves_no_private_key(
    world, stage, tmp_path, steps
):
    def prepare(world):
        world.deploy("a", tls=PAIRS[0])
        return (world.make("b"),)

    def check(world, new):
        deploy("b")(world)
        world.check_serves(new)
        world.check_proved()
        assert not (world.home / "tls.key").exists()

    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


# ---- a change that fails

FAULTS = {
    "start": f"{NAME} did not become ready: {JOB_FAILED}",
    "500": 'its model two does not answer: HTTP 500: {"error": "Failed to load model from file"}',
    "empty": "its model two does not answer: the answer is empty",
    "gone": "its model two does not answer: no answer from http://127.0.0.1:",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_served_before_serves_again_after_a_release_that_does_not(world, fault):
    old = world.deploy("a", key=KEY)
    before = world.files()
    new = world.make("b", setting="8192")
    world.faults[new.label] = fault
    world.journal += ["llama_model_load: loading", "CUDA error: out of memory"]
    told = failure(world.instance().try_release, "b")
    assert world.files() == before
    world.check_serves(old)
    world.check_proved()
    assert world.good() == "a"
    assert world.trying() == {}
    lines = told.splitlines()
    assert FAULTS[fault] in lines[0]
    assert lines[1] == (
        f"What served before serves again: release a (image {IMAGE}), proved by answers of two, three, one."
    )
    assert "llama_model_load: loading\nCUDA error: out of memory" in told
    assert lines[-1] == f"More: journalctl -u {NAME}, and docs/recovery.md"
    assert KEY not in told


@pytest.mark.parametrize("fault", ["half", "no usage"])
def test_what_served_before_serves_again_after_an_answer_that_nobody_has_thought_of(world, fault):
    old = world.deploy("a")
    new = world.make("b", setting="8192")
    world.faults[new.label] = fault
    told = failure(world.instance().try_release, "b")
    world.check_serves(old)
    assert "model two does not answer" in told
    assert "serves again" in told


def test_a_systemctl_that_fails_without_a_word_is_a_failure_like_others(world):
    old = world.deploy("a")
    world.make("b", setting="8192")
    world.refuses_once["restart"] = (-9, "", "")  # killed, for memory
    told = failure(world.instance().try_release, "b")
    world.check_serves(old)
    assert "did not become ready" in told
    assert f"release a (image {IMAGE}), proved by answers of" in told


def test_one_model_that_does_not_answer_is_enough_to_go_back(world):
    old = world.deploy("a")
    new = world.make("b", setting="8192")
    world.faults[new.label] = {"one": "500"}  # the last one that is asked
    assert f"{NAME} has started, but its model one does not answer" in failure(
        world.instance().try_release, "b"
    )
    world.check_serves(old)


@pytest.mark.parametrize("command", ["daemon-reload", "enable"])
def test_a_failure_before_the_restart_leaves_the_container_alone(world, command):
    old = world.deploy("a", key=KEY)
    world.make("b", setting="8192")
    world.refuses_once[command] = (1, "", "Failed to connect to bus: Permission denied\nmore words\n")
    told = failure(world.instance().try_release, "b")
    assert told.startswith(
        f"{NAME} systemctl {command} failed: Failed to connect to bus: Permission denied\n"
    )
    assert "What served before was not restarted and goes on serving: release a" in told
    world.check_serves(old)
    assert world.container["number"] == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_first_release_that_does_not_serve_is_stopped_and_disabled(world, fault):
    release = world.make("a")
    world.faults[release.label] = fault
    told = failure(world.instance().try_release, "a")
    assert FAULTS[fault] in told
    assert f"Nothing was serving before as {NAME}; it is stopped." in told
    assert world.container is None
    assert world.enabled is False
    assert world.good() is None
    assert world.trying() == {}


def test_a_release_that_cannot_be_put_back_is_told_so_and_where_help_is(world):
    old = world.deploy("a")
    new = world.make("b", setting="8192")
    world.faults.update({new.label: "500", old.label: "start"})
    told = failure(world.instance().try_release, "b")
    assert "its model two does not answer: HTTP 500" in told
    assert f"What was before (a) could NOT be put back: {NAME} did not become ready" in told
    assert "docs/recovery.md says what to do. Its last log lines:\nerror: failed to load model" in told
    assert "serves again" not in told
    assert world.trying()["release"] == "b"
    assert world.good() == "a"
    # Somebody has repaired it.
    world.faults.clear()
    world.instance().try_release("a")
    world.instance().accept("a", 10)
    world.check_serves(old)
    assert world.trying() == {}


def test_a_release_that_could_not_be_put_back_is_asked_again_before_it_is_good(world):
    old = world.deploy("a")
    new = world.make("b", setting="8192")
    world.faults.update({new.label: "start", old.label: "500"})
    assert "could NOT be put back" in failure(world.instance().try_release, "b")
    assert "HTTP 500" in failure(world.instance().try_release, "a")


# ---- a model file that is replaced under its own name


def test_a_model_file_that_fails_is_left_for_the_one_before(world):
    release = world.deploy("a")
    world.replace_model("two", "bad")
    world.bad_weights = {"bad"}
    told = failure(world.instance().try_release, "a")
    assert "What served before serves again: release a" in told
    assert "The model files in place are those from before, too: two.gguf." in told
    world.check_serves(release)
    world.check_proved()
    assert world.container["models"]["two"] == "weights of two"
    assert world.instance().facts("")["models_are_the_same"] is True
    assert (world.trying(), world.held()) == ({}, [])


def test_a_model_file_that_fails_is_left_also_for_a_new_release(world):
    release = world.deploy("a")
    world.replace_model("two", "bad")
    world.bad_weights = {"bad"}
    new = world.make("b", setting="8192")
    failure(world.instance().try_release, new.id)
    world.check_serves(release)
    assert world.container["models"]["two"] == "weights of two"


def test_of_a_model_file_that_is_proved_the_one_before_is_gone(world):
    world.deploy("a")
    world.replace_model("two", "better")
    assert world.held() == ["weights of two"]
    world.instance().try_release("a")
    assert world.held() == ["weights of two"], "it is not proved on GPUs yet"
    world.instance().accept("a", 10)
    assert world.held() == []
    assert (world.models / "two.gguf").read_text() == "better"


def test_a_model_file_that_another_instance_was_proved_with_stays(world):
    world.deploy("a")
    other = world.state / "other" / "good"
    other.mkdir(parents=True)
    (other / "proved.json").write_text(json.dumps(world.instance().good().proved))
    world.replace_model("two", "better")
    deploy("a")(world)
    assert world.held() == ["weights of two"]
    (other / "proved.json").unlink()
    deploy("a")(world)
    assert world.held() == []


def test_going_back_to_the_good_release_brings_its_model_file_back(world):
    world.deploy("a")
    world.replace_model("two", "bad")
    world.bad_weights = {"bad"}
    world.start()  # it was cut off, and the host has been started anew
    assert world.instance().try_release("a", with_its_models=True)["restarted"] is True
    assert world.container["models"]["two"] == "weights of two"
    world.check_proved()


def test_a_model_file_is_brought_back_on_a_disk_without_room_for_its_record(world, monkeypatch):
    release = world.deploy("a")
    world.replace_model("two", "bad")
    world.bad_weights = {"bad"}

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_record", full)
    told = failure(world.instance().try_release, "a")
    assert "What served before serves again: release a" in told
    world.check_serves(release)
    assert world.container["models"]["two"] == "weights of two"


def test_what_is_held_of_an_instance_goes_with_it(world):
    world.deploy("a")
    world.replace_model("two", "better")
    world.instance().remove()
    assert world.held() == []


@pytest.mark.parametrize("is_good", [False, True])
def test_after_a_kill_at_any_step_of_another_model_file_the_next_run_makes_it_good(
    world, stage, tmp_path, steps, is_good
):
    """Killed while it was replaced, tried, or while the old one was brought back."""

    def prepare(world):
        world.bad_weights = set() if is_good else {"other"}
        return [world.deploy("a")]

    def change(world):
        world.replace_model("two", "other")
        deploy("a")(world)

    def check(world, release):
        if is_good:
            change(world)
        else:
            told = failure(change, world)
            assert "release a" in told
        world.check_serves(release)
        world.check_proved()
        assert world.container["models"]["two"] == ("other" if is_good else "weights of two")
        assert (world.trying(), world.held()) == ({}, [])
        assert not (world.models / ".previous").exists()

    assert after_each_death(stage, tmp_path, steps, prepare, change, check) == {}


@pytest.mark.parametrize("identifier", ["a", "b"])
def test_after_a_kill_at_any_step_of_another_model_file_the_old_one_can_be_deployed(
    world, stage, tmp_path, steps, identifier
):
    """The inventory says again what it said, before the next run; perhaps with another note in the unit."""

    def prepare(world):
        world.bad_weights = {"other"}
        return [world.deploy("a")]

    def change(world):
        world.replace_model("two", "other")
        deploy("a")(world)

    def check(world, release):
        sha256 = hashlib.sha256(b"weights of two").hexdigest()
        path = str(world.models / "two.gguf")
        if gguf.state_of(path, sha256, "") == "unverified" and Path(path).read_text() == "weights of two":
            gguf.write_record(path, sha256, "")  # as gguf_store does with what it has read
        proofs = [str(world.state / "*" / "good" / "proved.json")]
        assert store.bring_back(path, sha256, proofs) or gguf.state_of(path, sha256, "") == "verified"
        if identifier == "b":
            world.make("b", note="waits longer")
        deploy(identifier)(world)
        world.check_proved()
        assert world.container["models"]["two"] == "weights of two"
        assert (world.trying(), world.held()) == ({}, [])
        assert not (world.models / ".previous").exists()

    assert after_each_death(stage, tmp_path, steps, prepare, change, check) == {}


# ---- an instance on the port of one that is to go away


def test_an_instance_takes_the_port_of_one_that_is_to_go_away(world):
    world.make_other()
    release = world.make("a")
    world.instance().try_release("a", instead_of=["old"])
    world.check_serves(release)
    assert (world.others["old"], (world.state / "old").exists()) == (False, True)
    world.instance().accept("a", 10)
    assert not (world.state / "old").exists()
    assert not (world.path / "units" / "old.service").exists()


def test_one_that_crashes_again_and_again_does_not_come_back_on_the_port(world):
    world.make_other()
    world.crashes = True
    release = world.make("a")
    world.instance().try_release("a", instead_of=["old"])
    world.check_serves(release)
    assert world.others["old"] is False


def test_one_that_somebody_has_stopped_is_not_started_again(world):
    world.make_other()
    world.others["old"] = False
    new = world.make("a")
    world.faults[new.label] = "start"
    assert "old serves" not in failure(lambda: world.instance().try_release("a", instead_of=["old"]))
    assert world.others["old"] is False


@pytest.mark.parametrize("fault", ["start", "500"])
def test_who_has_given_its_port_serves_again_when_the_new_one_does_not(world, fault):
    world.make_other()
    new = world.make("b", setting="8192")
    world.faults[new.label] = fault
    told = failure(lambda: world.instance().try_release("b", instead_of=["old"]))
    assert "old serves again: release x." in told
    assert world.others["old"] is True
    assert world.trying() == {}
    assert f"Nothing was serving before as {NAME}" in told
    assert world.container is None


def test_who_has_given_its_port_serves_again_when_others_do_not_want_the_new_one(world):
    world.make_other()
    world.make("a")
    world.instance().try_release("a", instead_of=["old"])
    assert "old serves again: release x." in failure(world.instance().restore, "a", "it is slow")
    assert (world.others["old"], world.container) == (True, None)


def test_who_has_another_port_or_is_to_stay_is_not_stopped(world):
    world.make_other()
    world.make("a")
    told = failure(world.instance().try_release, "a")
    assert world.others["old"] is True
    assert "serves again" not in told
    world.address = ("127.0.0.1", world.address[1] + 1)
    world.make("b")
    failure(lambda: world.instance().try_release("b", instead_of=["old"]))
    assert ["systemctl", "stop", "old.service"] not in world.commands


def test_who_was_stopped_by_a_run_that_was_cut_off_serves_again_when_the_next_one_fails(world):
    world.make_other()
    new = world.make("a")
    world.faults[new.label] = "start"

    def dies(_name):
        raise Killed

    instance = world.instance()
    instance._serve = lambda *_arguments: dies("")
    with pytest.raises(Killed):
        instance.try_release("a", instead_of=["old"])
    assert world.others["old"] is False
    told = failure(lambda: world.instance().try_release("a", instead_of=["old"]))
    assert "old serves again: release x." in told


# ---- a full disk


@pytest.fixture
def full_disk(monkeypatch):
    """Lets the copy with a number fail, half done, and all that come after it."""

    def fill(number, times=None):
        copies = itertools.count(1)

        def copy2(source, target):
            copy = next(copies)
            if copy < number or (times and copy >= number + times):
                return copied(source, target)
            Path(target).write_bytes(Path(source).read_bytes()[:3])
            raise OSError(errno.ENOSPC, "No space left on device", target)

        monkeypatch.setattr(shutil, "copy2", copy2)

    copied = shutil.copy2
    return fill


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_each_file_of_the_host_as_it_was(world, full_disk, number):
    old = world.deploy("a", key=KEY)
    before = world.files()
    new = world.make("b", setting="8192", key="sk-another-secret")
    full_disk(number)
    with pytest.raises(OSError, match="No space left"):
        new.put_in_place()
    assert world.files() == before
    assert old.is_in_place()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_disk_that_is_full_for_a_moment_leaves_the_old_release_serving(world, full_disk, number):
    old = world.deploy("a", key=KEY)
    before = world.files()
    world.make("b", setting="8192", key=KEY)
    full_disk(number, times=1)
    told = failure(world.instance().try_release, "b")
    assert "No space left on device" in told
    assert "was not restarted and goes on serving: release a" in told
    assert world.files() == before
    world.check_serves(old)
    assert world.container["number"] == 1
    assert world.trying() == {}


def test_a_disk_that_stays_full_is_no_reason_to_say_that_the_old_release_does_not_serve(world, full_disk):
    old = world.deploy("a", key=KEY)
    world.make("b", setting="8192", key=KEY)
    full_disk(1)
    told = failure(world.instance().try_release, "b")
    world.check_serves(old)
    assert "No space left on device" in told
    assert "goes on serving: release a" in told
    assert "could NOT be put back" not in told


def test_a_disk_that_is_full_at_a_first_release_leaves_nothing_to_put_back(world, full_disk):
    before = world.files()
    world.make("a", key=KEY)
    full_disk(2)
    told = failure(world.instance().try_release, "a")
    assert world.files() == before
    assert "Nothing was serving before" in told
    assert "could NOT be put back" not in told
    assert world.trying() == {}


# ---- a run that is killed


@pytest.fixture
def steps(world, stage, monkeypatch):
    """The steps of a run, of which one is its last. No sockets: there are thousands of questions."""

    def check_answer(client, alias, _question, _max_tokens):
        status, body = stage.world.answer(alias, f"Bearer {client.api_key}")
        if status != 200:
            raise releases.Broken(f"HTTP {status}: {body.decode()}")

    monkeypatch.setattr(releases, "check_answer", check_answer)
    monkeypatch.setattr(releases, "ask_docker", lambda _socket, path: stage.world.docker(unquote(path)))
    return Steps(monkeypatch)


class Steps:
    """Counts what a run does to the world, and kills it before the step with a number."""

    def __init__(self, monkeypatch):
        self.names, self.fatal = [], None
        self._patch(monkeypatch, os, "replace", 1)
        self._patch(monkeypatch, os, "symlink", 1)
        self._patch(monkeypatch, os, "unlink", 0)
        self._patch(monkeypatch, os, "link", 1)
        self._patch(monkeypatch, shutil, "copy2", 1, self._half_a_copy)
        self._patch(monkeypatch, releases, "check_answer", 1)

    def _patch(self, monkeypatch, module, name, argument, dying=lambda *_arguments: None):
        real = getattr(module, name)

        def step(*arguments, **options):
            self.step(f"{name} {os.path.basename(arguments[argument])}", dying, *arguments)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, step)

    @staticmethod
    def _half_a_copy(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:3])

    def step(self, name, dying=lambda *_arguments: None, *arguments):
        if self.fatal is None:
            return
        self.names.append(name)
        if len(self.names) == self.fatal:
            dying(*arguments)
            raise Killed(name)

    def run(self, fatal, world, action):
        """Have an action die at a step; returns which one that was, empty when it has fewer."""
        real = world.run

        def run(command):
            self.step(" ".join(command[:2]))
            return real(command)

        self.names, self.fatal, world.run = [], fatal, run
        try:
            action(world)
        except Killed as killed:
            return f"{fatal}: {killed}"
        except Problem:
            return ""
        finally:
            self.fatal, world.run = None, real
        return ""


def deploy(identifier):
    """An action: what site.yml does with a release."""

    def act(world):
        world.instance().try_release(identifier)
        world.instance().accept(identifier, 10)

    return act


def after_each_death(stage, path, steps, prepare, action, check):
    """Have an action die at each of its steps, each in a new world; returns what is wrong after which."""
    wrong = {}
    for fatal in itertools.count(1):
        world = World(stage, path / str(fatal))
        prepared = prepare(world)
        step = steps.run(fatal, world, action)
        if not step:
            assert fatal > 10, "there are fewer steps than there must be"
            return wrong
        try:
            check(world, *prepared)
        except (AssertionError, Problem, OSError) as error:
            wrong[step] = str(error).splitlines()[0]


def two_releases(fault=None, old_key="", new_key=""):
    """A preparation: a good release, and another one that is to be tried."""

    def prepare(world):
        old = world.deploy("a", key=old_key)
        new = world.make("b", setting="8192", key=new_key)
        world.faults[new.label] = fault
        return old, new

    return prepare


@pytest.mark.parametrize(("old_key", "new_key"), [(KEY, ""), ("", KEY)])
def test_after_a_kill_at_any_step_the_same_release_can_be_deployed(
    world, stage, tmp_path, steps, old_key, new_key
):
    def check(world, _old, new):
        assert world.good() in ("a", "b")
        deploy("b")(world)
        world.check_serves(new)
        world.check_proved()
        assert world.good() == "b"
        assert world.trying() == {}

    prepare = two_releases(old_key=old_key, new_key=new_key)
    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


@pytest.mark.parametrize("fault", [None, "start", "500"])
def test_after_a_kill_at_any_step_the_old_release_can_be_deployed(world, stage, tmp_path, steps, fault):
    def check(world, old, _new):
        deploy("a")(world)
        world.check_serves(old)
        assert world.good() == "a"
        assert world.trying() == {}

    prepare = two_releases(fault, old_key=KEY)
    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


@pytest.mark.parametrize("fault", ["start", "500"])
def test_after_a_kill_at_any_step_a_broken_release_fails_again_and_the_old_one_serves(
    world, stage, tmp_path, steps, fault
):
    def check(world, old, _new):
        told = failure(deploy("b"), world)
        assert "release a" in told
        world.check_serves(old)
        world.check_proved()
        assert world.good() == "a"
        assert world.trying() == {}

    prepare = two_releases(fault, new_key=KEY)
    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


def test_after_a_kill_at_any_step_no_release_is_good_whose_models_were_not_asked(
    world, stage, tmp_path, steps
):
    """Also the old one: the run that put it back may be killed before it was asked."""

    def check(world, _old, _new):
        deploy("a")(world)
        world.check_proved()

    prepare = two_releases("500")
    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


def test_after_a_kill_at_any_step_of_another_api_key_its_container_is_asked(world, stage, tmp_path, steps):
    def prepare(world):
        return world.deploy("a", key=KEY), world.make("b", key="sk-another-secret")

    def check(world, _old, new):
        deploy("b")(world)
        world.check_serves(new)
        world.check_proved()

    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


def test_after_a_kill_at_any_step_of_a_first_release_it_can_be_deployed(world, stage, tmp_path, steps):
    def check(world, new):
        deploy("a")(world)
        world.check_serves(new)
        world.check_proved()
        assert world.good() == "a"
        assert world.trying() == {}

    def prepare(world):
        return (world.make("a", key=KEY),)

    assert after_each_death(stage, tmp_path, steps, prepare, deploy("a"), check) == {}


@pytest.mark.parametrize("fault", ["start", "500"])
def test_after_a_kill_at_any_step_of_a_first_release_that_is_broken_it_fails_again_and_is_stopped(
    world, stage, tmp_path, steps, fault
):
    def prepare(world):
        new = world.make("a", key=KEY)
        world.faults[new.label] = fault
        return (new,)

    def check(world, _new):
        assert "Nothing was serving before" in failure(deploy("a"), world)
        assert world.container is None
        assert not world.enabled

    assert after_each_death(stage, tmp_path, steps, prepare, deploy("a"), check) == {}


@pytest.mark.parametrize("fault", ["start", "500"])
def test_after_a_kill_at_any_step_what_an_older_version_has_deployed_serves_again(
    world, stage, tmp_path, steps, fault
):
    def prepare(world):
        world.deploy_without_releases()
        new = world.make("b", setting="8192")
        world.faults[new.label] = fault
        return world.files(), world.container["config"]

    def check(world, files, config):
        failure(deploy("b"), world)
        assert world.files() == files
        assert world.container
        assert (world.container["label"], world.container["config"]) == ("old-label", config)

    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


@pytest.mark.parametrize("identifier", ["a", "b"])
def test_after_a_kill_at_any_step_the_next_run_leaves_no_half_file(world, stage, tmp_path, steps, identifier):
    """One of them may hold an API key that no release has any more."""

    def check(world, _old, _new):
        deploy(identifier)(world)
        assert [name for name in world.files() if name.endswith(".new")] == []

    prepare = two_releases(new_key=KEY)
    assert after_each_death(stage, tmp_path, steps, prepare, deploy("b"), check) == {}


def test_after_a_kill_at_any_step_of_going_back_the_next_run_goes_back(world, stage, tmp_path, steps):
    def prepare(world):
        old = world.deploy("a")
        world.instance().try_release(world.make("b", setting="8192", key=KEY).id)
        return (old,)

    def restore(world):
        world.instance().restore("b", "It computes on the CPU.")

    def check(world, old):
        assert "release a" in failure(restore, world)
        world.check_serves(old)
        world.check_proved()
        assert world.trying() == {}

    assert after_each_death(stage, tmp_path, steps, prepare, restore, check) == {}


def test_after_a_kill_at_any_step_each_release_that_is_told_is_whole(world, stage, tmp_path, steps):
    """Whoever goes back to half a release may serve without an API key."""

    def prepare(world):
        for identifier in ("0", "a"):
            world.deploy(identifier, setting=identifier, key=KEY, tls=PAIRS[0])
        world.make("b", setting="8192", key=KEY, tls=PAIRS[1])
        return ()

    def act(world):
        world.instance().try_release("b")
        world.instance().accept("b", 1)

    def check(world):
        for release in world.instance().releases():
            missing = [source for source, _target in release.files() if not os.path.exists(source)]
            assert not missing, f"release {release.id} is told, and lacks {len(missing)} files"

    assert after_each_death(stage, tmp_path, steps, prepare, act, check) == {}


def test_a_run_that_was_killed_while_it_removed_an_instance_is_made_good_by_the_next(
    world, stage, tmp_path, steps
):
    def prepare(world):
        world.deploy("a", key=KEY)
        return (world.deploy("b", setting="8192", key=KEY),)

    def remove(world):
        world.instance().remove()

    for fatal in itertools.count(1):
        world = World(stage, tmp_path / str(fatal))
        prepare(world)
        if not steps.run(fatal, world, remove):
            break
        world.instance().remove()
        assert world.container is None
        assert not world.unit_file.exists()
        assert not world.env_file.exists()
        assert not world.config_file.exists()
        assert os.listdir(world.state) == []
    assert fatal > 4


# ---- a run beside another one


@pytest.mark.parametrize(
    "action",
    [
        lambda instance: instance.try_release("b"),
        lambda instance: instance.accept("a", 10),
        lambda instance: instance.restore("b", "it is slow"),
        lambda instance: instance.remove(),
    ],
    ids=["try", "accept", "restore", "remove"],
)
def test_a_second_run_fails_at_once_and_touches_nothing(world, action):
    world.deploy("a")
    new = world.make("b", setting="8192")
    before, commands = world.touched(), len(world.commands)
    with world.instance().locked():
        told = failure(action, world.instance())
    assert told.startswith(f"another run is changing {NAME} (process {os.getpid()} on this host, since ")
    assert "nothing was touched" in told
    assert world.touched() == before
    assert len(world.commands) == commands
    world.instance().try_release("b")
    world.check_serves(new)


def test_instances_do_not_wait_for_each_other(world):
    world.make("a")
    with Instance("other", str(world.state), world.run).locked():
        world.instance().try_release("a")


def test_the_lock_of_a_run_that_was_killed_is_free(world):
    world.make("a")
    with contextlib.suppress(Killed), world.instance().locked():
        raise Killed
    world.instance().try_release("a")


# ---- what is refused


def mask(world):
    world.unit_file.unlink()
    world.unit_file.symlink_to("/dev/null")


REFUSED = {
    "masked": (mask, f"{NAME}.service is masked"),
    "no image": (
        lambda world: world.images.remove("llamacpp:2"),
        "the image llamacpp:2 of release b is not on",
    ),
    "no model file": (lambda world: os.unlink(world.models / "two.gguf"), "models/two.gguf, which is not on"),
    "no projector": (
        lambda world: os.unlink(world.models / "mmproj.gguf"),
        "models/mmproj.gguf, which is not",
    ),
    "no Docker": (lambda world: setattr(world.stage, "socket", "/no/socket"), "Docker does not answer"),
    "no release": (
        lambda world: shutil.rmtree(world.state / NAME / "releases/b"),
        f"{NAME} has no release b on this host; there are: a",
    ),
    "half a release": (
        lambda world: os.unlink(world.state / NAME / "releases/b/release.json"),
        f"{NAME} has no release b on this host; there are: a",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_release_that_cannot_run_is_refused_before_anything_is_touched(world, monkeypatch, reason):
    world.deploy("a")
    world.images.add("llamacpp:2")
    world.make("b", image="llamacpp:2")
    monkeypatch.setattr(world.stage, "socket", world.stage.socket)  # put back after the test
    spoil, words = REFUSED[reason]
    spoil(world)
    before, commands = world.touched(), len(world.commands)
    told = failure(world.instance().try_release, "b")
    assert words in told
    assert world.touched() == before
    assert world.container["number"] == 1
    assert len(world.commands) == commands


# ---- what ran before there were releases


@pytest.fixture
def old_world(world):
    world.deploy_without_releases()
    return world


@pytest.mark.parametrize("fault", FAULTS)
def test_what_an_older_version_has_deployed_serves_again_after_a_release_that_does_not(old_world, fault):
    files, config = old_world.files(), old_world.container["config"]
    new = old_world.make("b", setting="8192")
    old_world.faults[new.label] = fault
    told = failure(old_world.instance().try_release, "b")
    found = next(name for name in old_world.releases() if name != "b")
    assert found.endswith("-found")
    assert f"What served before serves again: release {found} (image {IMAGE}), proved by answers of" in told
    assert old_world.files() == files
    assert (old_world.container["label"], old_world.container["config"]) == ("old-label", config)
    assert old_world.container["key"] == ""
    old_world.check_proved()
    assert old_world.trying() == {}


def test_what_an_older_version_has_deployed_is_left_for_a_release_that_serves(old_world):
    new = old_world.make("b", setting="8192", key=KEY)
    old_world.instance().try_release("b")
    old_world.age(*(name for name in old_world.releases() if name != "b"))
    old_world.instance().accept("b", 10)
    old_world.check_serves(new)
    assert old_world.releases() == ["b"]


def test_what_an_older_version_has_deployed_is_asked_where_it_listens(world, stage):
    world.address = stage.addresses[1]  # llamacpp_server_bind_address
    world.deploy_without_releases()
    new = world.make("b", setting="8192")
    world.faults[new.label] = "500"
    assert "serves again" in failure(world.instance().try_release, "b")


# ---- a release that was tried, and is not wanted


def test_a_release_that_is_not_wanted_is_left_for_the_one_before(world):
    old = world.deploy("a", key=KEY)
    before = world.files()
    world.make("b", setting="8192")
    world.instance().try_release("b")
    told = failure(world.instance().restore, "b", "It computes on the CPU.")
    assert told.startswith("It computes on the CPU.\nWhat served before serves again: release a ")
    assert world.files() == before
    world.check_serves(old)
    world.check_proved()
    assert world.trying() == {}


def test_a_first_release_that_is_not_wanted_is_stopped(world):
    world.make("a")
    world.instance().try_release("a")
    told = failure(world.instance().restore, "a", "It computes on the CPU.")
    assert told.startswith(f"It computes on the CPU.\nNothing was serving before as {NAME}; it is stopped.")
    assert world.container is None
    assert world.enabled is False


def test_what_an_older_version_has_deployed_serves_again_for_a_release_that_is_not_wanted(old_world):
    files = old_world.files()
    old_world.make("b", setting="8192")
    old_world.instance().try_release("b")
    assert "serves again" in failure(old_world.instance().restore, "b", "It computes on the CPU.")
    assert old_world.files() == files
    assert old_world.container["label"] == "old-label"


def test_a_release_of_another_run_is_left_alone(world):
    world.deploy("a")
    new = world.make("b", setting="8192")
    world.instance().try_release("b")
    trying = world.trying()
    assert failure(world.instance().restore, "c", "It computes on the CPU.") == "It computes on the CPU."
    world.check_serves(new)
    assert world.trying() == trying


def test_an_accepted_release_is_not_left_again(world):
    release = world.deploy("a")
    assert failure(world.instance().restore, "a", "It computes on the CPU.") == "It computes on the CPU."
    world.check_serves(release)


# ---- a release that is good


def test_a_release_that_does_not_run_is_not_accepted(world):
    world.deploy("a")
    world.make("b", setting="8192")
    assert failure(world.instance().accept, "b", 10) == f"{NAME} does not run release b; run again"
    assert "has no release c" in failure(world.instance().accept, "c", 10)
    assert world.good() == "a"
    assert Release(str(world.state / NAME / "releases/b")).proved == {}
    world.container = None
    assert "does not run" in failure(world.instance().accept, "a", 10)


def test_the_last_proved_releases_are_kept_and_none_that_was_never_proved(world, clock):
    for number in range(5):
        failed = world.make(f"{number}-failed", setting=f"failed {number}")
        world.faults[failed.label] = "500"
        if number:
            failure(world.instance().try_release, failed.id)
        world.age(failed.id)
        world.deploy(str(number), setting=str(number))
    assert world.releases() == ["0", "1", "2", "3", "4"]
    world.make("5", setting="5")
    world.instance().try_release("5")
    world.instance().accept("5", 3)
    assert world.releases() == ["3", "4", "5"]
    # Back to an old one: the one before stays, though others were proved after it.
    world.instance().try_release("3")
    world.instance().accept("3", 1)
    assert world.releases() == ["3", "5"]


def test_a_release_that_another_run_has_just_made_is_kept_for_it(world):
    world.make("a")
    new = world.make("b", setting="8192")
    world.instance().try_release("a")
    world.instance().accept("a", 10)
    world.instance().try_release("b")
    world.check_serves(new)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_last_two_proved_releases_are_always_kept(world, clock, keep):
    for number in range(4):
        world.deploy(str(number), setting=str(number))
    for _time in range(2):  # again, as when a file was damaged by hand
        world.instance().try_release("3")
        world.instance().accept("3", keep)
        assert world.releases() == ["2", "3"]


def test_the_release_before_is_kept_also_when_the_clock_was_set_back(world, monkeypatch):
    seconds = itertools.count(59, -1)
    monkeypatch.setattr(releases, "now", lambda: f"2026-11-23T02:00:{next(seconds):02}Z")
    for number in range(4):
        world.deploy(str(number), setting=str(number))
    world.make("4", setting="4")
    world.instance().try_release("4")
    world.instance().accept("4", 2)
    assert {"3", "4"} <= set(world.releases())


def test_the_last_proved_releases_are_kept_also_when_the_clock_was_set_back(world, monkeypatch):
    seconds = itertools.count(59, -1)
    monkeypatch.setattr(releases, "now", lambda: f"2026-11-23T02:00:{next(seconds):02}Z")
    for number in (5, 3, 4, 1, 2):
        world.make(str(number), setting=str(number))
        world.instance().try_release(str(number))
        world.instance().accept(str(number), 3)
    assert world.releases() == ["1", "2", "4"]
    world.instance().try_release("1")
    world.instance().accept("1", 3)
    told = {one["id"]: one["number"] for one in world.instance().facts("")["releases"]}
    assert sorted(told, key=told.get) == ["4", "2", "1"]


def test_a_failed_release_of_a_clock_that_was_set_back_goes_too(world):
    world.make("a")
    os.utime(world.state / NAME / "releases" / "a", (time.time() + 86400 * 365,) * 2)
    world.deploy("b")
    assert world.releases() == ["b"]


# ---- an instance that is not wanted


def test_an_instance_is_removed_with_its_releases_and_without_model_files(world):
    world.deploy("a", key=KEY)
    world.deploy("b", setting="8192")
    models = sorted(os.listdir(world.models))
    assert world.instance().remove() is True
    assert world.container is None
    assert world.enabled is False
    assert world.loaded is None
    assert sorted(os.listdir(world.models)) == models
    assert [name for name in world.files() if not name.startswith("models/")] == []
    assert not world.home.exists()
    assert os.listdir(world.state) == []
    assert world.instance().remove() is False
    assert os.listdir(world.state) == []


def test_files_of_others_stay_when_an_instance_is_removed(world):
    world.deploy("a", key=KEY)
    (world.home / "notes.txt").write_text("mine")
    (world.env_file.parent / "other.env").write_text("mine")
    (world.unit_file.parent / "other.service").write_text("mine")
    (world.home / "model/own.gguf").write_text("mine")  # llamacpp_server_models_dir may be here
    world.instance().remove()
    assert [name for name in world.files() if not name.startswith("models/")] == [
        "units/other.service",
        f"home/{NAME}/notes.txt",
        f"home/{NAME}/model/own.gguf",
        "env/other.env",
    ]


def test_an_instance_that_an_older_version_has_deployed_is_stopped_and_its_unit_removed(old_world):
    assert old_world.instance().remove() is True
    assert old_world.container is None
    assert not old_world.unit_file.exists()


def test_an_instance_whose_unit_is_gone_is_stopped_all_the_same(world):
    world.deploy("a")
    world.unit_file.unlink()
    assert world.instance().remove() is True
    assert world.container is None


def test_an_instance_that_cannot_be_stopped_is_not_removed(world):
    release = world.deploy("a")
    world.refusals["disable"] = (1, "", "Failed to disable unit: Access denied\n")
    assert "Access denied" in failure(world.instance().remove)
    world.check_serves(release)
    assert world.good() == "a"


# ---- what is told of an instance


def test_of_an_instance_that_is_not_there_there_is_nothing_to_tell(world):
    assert world.instance().facts("") == {
        "running": {},
        "key_is_wanted": True,
        "good": {},
        "is_in_place": False,
        "models_are_the_same": False,
        "is_active": False,
        "is_enabled": False,
        "trying": {},
        "releases": [],
    }
    assert not world.state.exists()


def test_of_an_instance_that_is_as_it_should_be_all_is_told(world):
    release = world.deploy("a", key=KEY)
    proved = world.instance().good().proved["at"]
    record = dict(release.record, proved=proved)
    assert world.instance().facts(KEY) == {
        "running": {
            "label": release.label,
            "image": IMAGE,
            "id": f"{1:064}",
            "started": world.container["started"],
        },
        "key_is_wanted": True,
        "good": record,
        "is_in_place": True,
        "models_are_the_same": True,
        "is_active": True,
        "is_enabled": True,
        "trying": {},
        "releases": [dict(record, number=1, good=True)],
    }


def differences(world, key=""):
    """The facts that are not as they are when an instance is as it should be."""
    found = world.instance().facts(key)
    wanted = {
        "key_is_wanted": True,
        "is_in_place": True,
        "models_are_the_same": True,
        "is_active": True,
        "is_enabled": True,
        "trying": {},
    }
    return {fact: found[fact] for fact, value in wanted.items() if found[fact] != value}


def stop(world):
    world.container = None


def stop_docker(world):
    world.docker_answers = False


CHANGES = {
    "config": (lambda world: world.config_file.write_text("{}"), {"is_in_place": False}),
    "unit": (lambda world: world.unit_file.unlink(), {"is_in_place": False}),
    "key of nobody": (lambda world: world.env_file.write_text("API_KEY=x"), {"is_in_place": False}),
    "model": (lambda world: world.bring_model("two", "other"), {"models_are_the_same": False}),
    "disabled": (lambda world: setattr(world, "enabled", False), {"is_enabled": False}),
    "stopped": (stop, {"is_active": False}),
    "no Docker": (stop_docker, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_it_should_be_is_told(world, change):
    world.deploy("a")
    assert differences(world) == {}
    act, told = CHANGES[change]
    act(world)
    assert differences(world) == told
    assert bool(world.instance().facts("")["running"]) is (change not in ("stopped", "no Docker"))


def test_a_key_that_is_not_the_wanted_one_is_told(world):
    world.deploy("a", key=KEY)
    assert differences(world, KEY) == {}
    assert differences(world, "") == {"key_is_wanted": False}
    assert differences(world, "sk-another-secret") == {"key_is_wanted": False}


def test_what_is_tried_is_told_until_it_is_good(world):
    old = world.deploy("a")
    new = world.make("b", setting="8192")
    world.instance().try_release("b")
    found = world.instance().facts("")
    assert found["running"]["label"] == new.label
    assert found["good"]["id"] == old.id
    assert found["is_in_place"] is False
    assert found["trying"] == world.trying()
    assert [(one["id"], bool(one["proved"]), one["good"]) for one in found["releases"]] == [
        ("a", True, True),
        ("b", False, False),
    ]
    world.instance().accept("b", 10)
    found = world.instance().facts("")
    assert found["good"]["id"] == new.id
    assert [(one["id"], bool(one["proved"]), one["good"]) for one in found["releases"]] == [
        ("a", True, False),
        ("b", True, True),
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_record_is_as_good_as_none(world, content):
    world.deploy("a")
    world.deploy("b", setting="8192")
    (world.state / NAME / "releases/b/release.json").write_text(content)
    found = world.instance().facts("")
    assert found["good"] == {}
    assert [one["id"] for one in found["releases"]] == ["a"]
