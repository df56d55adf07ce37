"""What an operator's changes do: good ones are applied, bad ones are one clear error with nothing touched."""

from __future__ import annotations

import json

import pytest
from conftest import PORT, URL


def without(dictionary: dict, key: str) -> dict:
    return {name: value for name, value in dictionary.items() if name != key}


def test_a_second_run_changes_nothing_and_restarts_nothing(play, untouched):
    run = play()
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, run.output


def test_check_mode_tells_what_would_change_and_touches_nothing(play, untouched):
    run = play("site.yml", "--check", "--diff", llm_server_settings={"interrupt_requests": True})
    assert run.rc == 0, run.output
    assert '+  "interrupt_requests": true' in run.output
    # config.json, the unit that carries its hash, and the restart.
    assert run.count("changed") == 3, run.output


# What the operator did wrong in variables, all in one run, and what the one line about each must say.
def many_mistakes(good: dict) -> dict:
    """Variables with all of MISTAKES in them.

    Args:
        good: those that are deployed.
    """
    twice = good["llm_models"][0]
    return {
        "llm_instance": [],
        "llm_backend": "cpu",
        "llm_model_defaults": {"n_ctxx": 4096, "n_ctx": "four thousand", "chat_format": "chatmll"},
        "llm_models": [*good["llm_models"], twice, without(twice, "sha256") | {"alias": "unhashed"}],
        "llm_instances": [
            {"name": "one", "port": 20080, "gpus": []},
            {"name": "two", "port": 20080, "gpus": []},
            {"name": "three", "port": 20081, "gpus": [0]},
            {"name": "four", "port": 20082, "models": ["gpt"]},
        ],
    }


MISTAKES = {
    "unknown setting": ["llm_model_defaults", "n_ctxx", "n_ctx"],
    "wrong type": ["llm_model_defaults", "four thousand", "integer"],
    "unknown chat_format": ["llm_model_defaults", "chatmll", "chatml", "llama-2"],
    "duplicate alias": ["llm_models[2]", "alias", "smollm2"],
    "duplicate port": ["llm_instances[1] (name two)", "20080", "llm_instances[0]"],
    "unknown model": ["llm_instances[3]", "gpt", "smollm2", "gemma3"],
    "missing sha256": ["llm_models[3]", "sha256 is missing", "unhashed"],
    "misspelled variable": ["llm_instance ", "llm_instances"],
    "GPU on the CPU backend": ["llm_instances[2]", "gpus: []"],
}


@pytest.fixture(scope="module")
def mistaken(play, services, demo_variables):
    """A run with all mistakes, after which the services are what they were."""
    before = services()
    run = play(**many_mistakes(demo_variables))
    assert services() == before
    return run


def test_mistakes_in_variables_are_one_error_and_nothing_is_touched(mistaken):
    assert mistaken.rc != 0, mistaken.output
    assert mistaken.count("changed") == 0, mistaken.output
    assert mistaken.output.count("fatal:") == 1, mistaken.output


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_clear_line(mistaken, mistake):
    about = [line for line in mistaken.error.splitlines() if all(word in line for word in MISTAKES[mistake])]
    assert len(about) == 1, mistaken.error


# What only the host or a source shows to be wrong, as variables made from the good ones, and what
# the one error must say.
BAD_INPUT = {
    "URL that answers 404": (
        lambda good: {
            "llm_models": [
                good["llm_models"][0]
                | {"file": "new.gguf", "url": "http://models.internal/no-such-file.gguf"}
            ]
        },
        ["llm_models", "smollm2", "http://models.internal/no-such-file.gguf", "404"],
    ),
    "URL that answers a web page": (
        lambda good: {
            "llm_models": [
                good["llm_models"][0] | {"file": "new.gguf", "url": "http://models.internal/login.html"}
            ]
        },
        ["llm_models", "smollm2", "login.html", "web page"],
    ),
    "unsupported operating system": (
        lambda good: {"preflight_supported_os": {"Ubuntu": ["24.04"]}},
        ["Debian 13", "Ubuntu 24.04", "preflight_supported_os"],
    ),
    "too little disk space": (
        lambda good: {
            "llm_home": "/mnt/small",
            "llm_models_dir": "/mnt/small/model",
        },
        ["/mnt/small/model", "MiB", "llm_models_dir"],
    ),
    "user id of somebody else": (
        lambda good: {"llm_uid": 33},
        ["llm_uid", "33", "www-data"],
    ),
}


@pytest.fixture(scope="module")
def small_disk(host):
    """A real file system of 64 MiB on the host."""
    host.check_output("mkdir -p /mnt/small && mount -t tmpfs -o size=64m tmpfs /mnt/small")
    yield
    host.check_output("umount /mnt/small && rmdir /mnt/small")


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.usefixtures("small_disk")
def test_bad_input_is_one_clear_error_and_nothing_is_touched(play, untouched, demo_variables, case):
    variables, must_say = BAD_INPUT[case]
    run = play(**variables(demo_variables))
    assert run.rc != 0, run.output
    assert run.count("changed") == 0, run.output
    assert run.output.count("fatal:") == 1, run.output
    error = run.output.split("fatal:")[1]
    for words in must_say:
        assert words in error, f"{words!r} is not in: {error}"


def test_a_port_taken_by_a_foreign_process_is_named(host, play, untouched):
    host.check_output("systemd-run --unit=squatter python3 -m http.server 20099")
    try:
        instances = [
            {"name": "llamacpp", "port": 20080, "gpus": []},
            {"name": "second", "port": 20099, "gpus": []},
        ]
        run = play(llm_instances=instances)
    finally:
        host.check_output("systemctl stop squatter")
    assert run.rc != 0
    assert run.count("changed") == 0
    error = run.output.split("fatal:")[1]
    assert "20099" in error and "python3" in error and "second" in error


def test_the_engine_itself_refuses_a_bad_config_and_names_the_setting(host):
    config = json.loads(host.file("/home/llm/llamacpp/config.json").content_string)
    config["models"][1]["n_ctxx"] = 1
    host.check_output("mkdir -p /tmp/candidate")
    host.run_expect([0], f"echo '{json.dumps(config)}' > /tmp/candidate/config.json")
    refused = host.run(
        "docker run --rm --network=none -v /tmp/candidate:/candidate:ro llamacpp:latest "
        "check-config --skip-files /candidate/config.json"
    )
    assert refused.rc == 1
    assert "n_ctxx" in refused.stdout + refused.stderr
    assert "n_ctx" in (refused.stdout + refused.stderr).replace("n_ctxx", "")


def test_a_changed_setting_is_deployed_with_one_restart(host, play, container):
    before = container()["State"]["StartedAt"]
    changed = {"logits_all": False, "embedding": True, "use_mlock": False, "n_batch": 256}
    run = play(llm_model_defaults=changed)
    assert run.rc == 0, run.output
    config = json.loads(host.file("/home/llm/llamacpp/config.json").content_string)
    assert [model["n_batch"] for model in config["models"]] == [256, 256]
    assert container()["State"]["StartedAt"] > before
    back = play("rollback.yml", to="previous")
    assert back.rc == 0, back.output


def test_the_port_is_published_as_the_inventory_says(container):
    assert container()["HostConfig"]["PortBindings"] == {
        "20080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "20080"}]
    }
    assert URL.endswith(str(PORT))
