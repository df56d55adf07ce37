"""Where model files may come from besides a URL: gated repositories, mirrors, parts, paths."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import pytest
from conftest import (
    MODELS,
    SECOND_PORT,
    SERVED,
    TOKEN,
    entry,
    from_hub,
    from_web,
    line_about,
    service,
)
from testing import Play, Running, ask, openai_client, wait_until


@pytest.fixture(autouse=True)
def quiet(hub):
    """The hub's log is of one test."""
    hub.reset()


# ---- Gated repositories


@pytest.mark.parametrize("token", ["", "wrong"], ids=["no token", "wrong token"])
def test_refuses_a_gated_repository_to(fetch, host, token):
    run = fetch(entry("gated.gguf", **from_hub("gated/model", "model-hub.gguf")), llm_hub_token=token)
    assert run.rc != 0
    assert run.count("changed") == 0
    line = line_about(run, "hub.internal/gated/model", "403" if token else "401")
    assert "licence" in line and "llm_hub_token" in line
    assert not host.file(f"{MODELS}/gated.gguf").exists


class Seen(NamedTuple):
    """A finished play; what processes on the host showed while it ran, and which files held the token."""

    play: Play
    processes: str
    files: str


def token_in_files(host):
    """The names of the files on the host that hold the token."""
    places = f"/root/.ansible /root/.ansible_async /tmp /var/tmp /etc {MODELS}"
    return host.run(f"find {places} -type f -not -name '*.gguf' -exec grep -l {TOKEN} {{}} +").stdout


class TestToken:
    """A slow download from a gated repository, with everything said as loudly as Ansible can."""

    @pytest.fixture(scope="class")
    def seen(self, hub, host, scenario, smollm2):
        """The play that fetches it."""
        hub.reset()
        run = Running(
            scenario,
            *("site.yml", "--tags", "models", "-vvv", "--diff"),
            llm_models=[smollm2, entry("gated.gguf", **from_hub("gated/slow", "model-slow.gguf"))],
            llm_hub_token=TOKEN,
        )
        wait_until(lambda: hub.sent("model-slow.gguf") > 0 or not run.runs, "the first byte")
        files = token_in_files(host)
        processes = ""
        while run.runs:
            # Not grep with the token as its argument: it would find itself.
            processes += host.run("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' ' '").stdout
            time.sleep(0.5)
        return Seen(run.finish(), processes, files)

    def test_opens_a_gated_repository(self, seen, sha256, in_place):
        assert seen.play.rc == 0, seen.play.output
        assert in_place("gated.gguf", sha256["model-slow.gguf"])

    def test_is_told_to_the_hub_only(self, fetch, hub):
        fetch(entry("gated-2.gguf", **from_hub("gated/model", "model-hub.gguf")), llm_hub_token=TOKEN)
        told = {(request["host"], request["authorization"]) for request in hub.log()}
        assert told == {("hub.internal", True), ("cdn.internal", False)}

    def test_is_in_no_process_list_and_no_environment(self, seen):
        assert "aria2c" in seen.processes
        assert TOKEN not in seen.processes

    def test_is_not_in_the_output_of_the_play(self, seen):
        # The one place is the line that shows the command's own -e, as every Ansible run does at -vvv.
        lines = seen.play.output.splitlines()
        assert not [line for line in lines if TOKEN in line and not line.startswith("ansible-playbook ")]

    def test_is_in_no_file_and_no_log_on_the_host(self, seen, host):
        assert seen.files == ""
        assert token_in_files(host) == ""
        assert TOKEN not in host.check_output("journalctl --no-pager -o cat")

    def test_progress_is_seen_meanwhile(self, seen):
        line = re.compile(r"gated\.gguf: fetching, (\d+) % of 25\.2 MB, [\d.]+ MB/s, ETA \w+")
        percents = [int(percent) for percent in line.findall(seen.play.output)]
        assert len(set(percents)) > 2
        assert percents == sorted(percents)


# ---- Mirrors, parts, side files


def test_a_mirror_is_asked_in_place_of_the_hub(fetch, hub, sha256, in_place):
    run = fetch(
        entry("mirrored.gguf", **from_hub("any/model", "model-hub.gguf")),
        preflight_hub_url="https://hub.invalid",
        gguf_models_hub_url="https://hub.invalid",
        llm_hub_mirror="http://hub.internal",
    )
    assert run.rc == 0, run.output
    assert in_place("mirrored.gguf", sha256["model-hub.gguf"])
    assert hub.sent("model-hub.gguf") >= (SERVED / "model-hub.gguf").stat().st_size


@pytest.mark.parametrize("given", [True, False], ids=["sha256 given", "sha256 announced"])
def test_a_split_model_comes_with_all_its_parts(fetch, host, sha256, in_place, given):
    parts = [f"split-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    source = from_web("plain", parts[0]) if given else from_hub("any/model", parts[0])
    model = entry(parts[0], **source)
    if given:
        model["sha256"] = [sha256[part] for part in parts]
    run = fetch(model)
    assert run.rc == 0, run.output
    assert all(in_place(part, sha256[part]) for part in parts)
    host.check_output(f"rm {MODELS}/split-* {MODELS}/.split-*")


def test_a_side_file_comes_with_its_model(fetch, sha256, in_place):
    side = {"setting": "lora_path", "file": "lora.gguf", "sha256": sha256["model-side.gguf"]}
    model = entry("with-side.gguf", sha256["model-plain.gguf"], **from_web("plain", "model-plain.gguf"))
    model["side_files"] = [side | from_web("plain", "model-side.gguf")]
    run = fetch(model)
    assert run.rc == 0, run.output
    assert in_place("lora.gguf", sha256["model-side.gguf"])


# ---- Paths


def test_a_file_of_the_controller_is_copied_to_hosts_that_reach_no_server(fetch, hub, sha256, in_place):
    source = str(SERVED / "model-plain.gguf")
    run = fetch(entry("carried.gguf", sha256["model-plain.gguf"], controller_path=source))
    assert run.rc == 0, run.output
    assert in_place("carried.gguf", sha256["model-plain.gguf"])
    assert hub.log() == []


def test_refuses_a_file_of_the_controller_that_is_another_one(fetch, host, sha256):
    source = str(SERVED / "model-plain.gguf")
    run = fetch(entry("other.gguf", sha256["model-drop.gguf"], controller_path=source))
    assert run.rc != 0
    line = line_about(run, "other.gguf", sha256["model-drop.gguf"], sha256["model-plain.gguf"])
    assert "controller_path" in line
    assert not host.file(f"{MODELS}/other.gguf").exists


@pytest.fixture(scope="module")
def shared(host):
    """A directory on the host, as another machine would share it, with two models."""
    directory = "/srv/shared"
    host.check_output(f"mkdir -p {directory}")
    get = "python3 -c 'import sys, urllib.request as u; u.urlretrieve(*sys.argv[1:])'"
    host.check_output(f"{get} http://files.internal/plain/model-path.gguf {directory}/model-path.gguf")
    smollm2 = "smollm2-135m-instruct-q4_1.gguf"
    host.check_output(f"cp {MODELS}/{smollm2} {directory}/{smollm2}")
    return directory


def test_a_path_on_the_host_is_copied(fetch, host, hub, shared, sha256, in_place):
    path = f"{shared}/model-path.gguf"
    run = fetch(entry("copied.gguf", sha256["model-path.gguf"], path=path))
    assert run.rc == 0, run.output
    assert in_place("copied.gguf", sha256["model-path.gguf"])
    assert not host.file(f"{MODELS}/copied.gguf").is_symlink
    assert hub.log() == []


def test_a_path_on_the_host_is_linked_when_told_to(fetch, host, shared, sha256, in_place):
    path = f"{shared}/model-path.gguf"
    model = entry("linked.gguf", sha256["model-path.gguf"], path=path, link=True)
    run = fetch(model)
    assert run.rc == 0, run.output
    assert host.file(f"{MODELS}/linked.gguf").linked_to == path
    assert in_place("linked.gguf", sha256["model-path.gguf"])
    again = fetch(model)
    assert again.count("changed") == 0, again.output


def test_refuses_to_link_a_file_that_is_another_one(fetch, host, shared, sha256):
    path = f"{shared}/model-path.gguf"
    run = fetch(entry("wrong-link.gguf", sha256["model-drop.gguf"], path=path, link=True))
    assert run.rc != 0
    assert line_about(run, "wrong-link.gguf", sha256["model-drop.gguf"], sha256["model-path.gguf"])
    assert not host.file(f"{MODELS}/wrong-link.gguf").exists
    assert host.file(path).sha256sum == sha256["model-path.gguf"]


def test_a_linked_model_is_served_from_where_it_is(play, host, served, shared, smollm2):
    linked = {key: value for key, value in smollm2.items() if key != "url"} | {
        "alias": "linked-smollm2",
        "file": "linked-smollm2.gguf",
        "path": f"{shared}/{smollm2['file']}",
        "link": True,
    }
    first = {"name": "llamacpp", "port": 20080, "gpus": [], "models": ["smollm2"]}
    second = {"name": "second", "port": 20081, "gpus": [], "models": ["linked-smollm2"]}
    run = play(llm_models=[smollm2, linked], llm_instances=[first, second])
    try:
        assert run.rc == 0, run.output
        answer = ask(openai_client(SECOND_PORT), "linked-smollm2")
        assert "Paris" in answer.choices[0].message.content
    finally:
        back = play()  # without the second instance, too
        served["by"] = service(host)  # restarted: the directory of the link is mounted no longer
    assert back.rc == 0, back.output
