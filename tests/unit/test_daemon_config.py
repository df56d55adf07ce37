"""Docker's configuration file keeps what others have put there."""

import json

import pytest
from daemon_config import daemon_config

WANTED = {
    "features": {"cdi": True},
    "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}},
}


@pytest.mark.parametrize("text", ["", " \n", "{}"])
def test_a_file_without_settings_gets_ours(text):
    result = daemon_config(text, WANTED)
    assert (result["config"], result["differs"], result["problem"]) == (WANTED, True, "")


def test_keys_of_others_stay_in_their_order_and_at_any_depth():
    found = {
        "log-driver": "local",
        "features": {"containerd-snapshotter": True},
        "runtimes": {"kata": {"path": "/opt/kata"}, "nvidia": {"path": "/old", "args": ["--debug"]}},
        "registry-mirrors": ["https://mirror"],
    }
    config = daemon_config(json.dumps(found), WANTED)["config"]
    assert list(config) == list(found)
    assert config == {
        **found,
        "features": {"containerd-snapshotter": True, "cdi": True},
        "runtimes": {"kata": {"path": "/opt/kata"}, **WANTED["runtimes"]},
    }


@pytest.mark.parametrize("indent", [None, 4, "\t"])
def test_a_file_that_differs_in_white_space_and_order_only_is_left_alone(indent):
    found = {"runtimes": WANTED["runtimes"], "debug": True, "features": WANTED["features"]}
    assert not daemon_config(json.dumps(found, indent=indent), WANTED)["differs"]


@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
def test_the_indentation_of_the_file_is_kept(indent):
    assert daemon_config(json.dumps({"debug": True}, indent=indent), WANTED)["indent"] == indent


def test_settings_of_another_type_are_replaced():
    assert daemon_config('{"features": null}', WANTED)["config"]["features"] == {"cdi": True}


def test_ours_are_not_changed_by_the_merge():
    before = json.dumps(WANTED)
    daemon_config('{"features": {"a": true}}', WANTED)
    assert json.dumps(WANTED) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{\n  "debug": true,\n}',
            "line 3, column 1: Expecting property name enclosed in double quotes",
        ),
        ('{\n  "debug": tru\n}', "line 2, column 12: Expecting value"),
        ("[]", "line 1: not a JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_with_file_and_line(text, problem):
    result = daemon_config(text, WANTED)
    assert result["problem"].startswith("/etc/docker/daemon.json, line")
    assert result["problem"].endswith(problem)
    assert not result["differs"]
