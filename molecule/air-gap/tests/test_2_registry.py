"""An image is pulled from a registry: the distribution's own, on the host that made the bundle."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import testinfra

BUILDER = "llm-builder"
USER, PASSWORD = "llm", "a-very-secret-password"
NAME = "localhost:5000/llm/llamacpp"
CONFIG = """version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
http: {addr: "127.0.0.1:5000"}
auth: {htpasswd: {realm: registry, path: /etc/docker/registry/htpasswd}}
"""


@pytest.fixture(scope="module")
def builder():
    """The host that made the bundle."""
    return testinfra.get_host(f"docker://{BUILDER}")


@pytest.fixture(scope="module")
def pushed(builder, manifest) -> str:
    """Name of the bundle's image in a registry that wants a password; Docker itself has lost the image."""
    builder.check_output(
        "apt-get -qq update && DEBIAN_FRONTEND=noninteractive"
        " apt-get -qq install --no-install-recommends docker-registry apache2-utils"
    )
    builder.check_output("printf %%s %s > /etc/docker/registry/config.yml", CONFIG)
    builder.check_output("htpasswd -Bbn %s %s > /etc/docker/registry/htpasswd", USER, PASSWORD)
    builder.check_output("systemctl restart docker-registry")
    builder.check_output("docker tag %s %s:test", manifest["image"]["digests"][0], NAME)
    builder.check_output("docker login --username %s --password %s localhost:5000", USER, PASSWORD)
    digest = builder.check_output(
        "docker push --quiet %s:test && docker inspect --format %s %s:test",
        NAME,
        "{{index .RepoDigests 0}}",
        NAME,
    )
    builder.check_output("docker logout localhost:5000")
    builder.check_output("docker image rm --force %s", manifest["image"]["digests"][0])
    return digest.splitlines()[-1]


@pytest.fixture
def pull(play, pushed) -> Callable:
    """Returns a function: variables -> a run of what site.yml does to the image, on that host."""

    def run(**variables):
        login = {"llamacpp_image_registry_username": USER, "llamacpp_image_registry_password": PASSWORD}
        image = {"llamacpp_image_source": "registry", "llamacpp_image_registry_ref": pushed}
        return play(
            "site.yml",
            *("-i", "molecule/air-gap/builder", "-l", BUILDER, "--tags", "image"),
            **{"llm_bundle": ""} | image | login | variables,
        )

    return run


def test_a_wrong_password_is_told_and_pulls_nothing(pull, builder):
    run = pull(llamacpp_image_registry_password="wrong")
    assert run.rc != 0
    assert "llamacpp_image_registry_username" in run.error
    assert builder.check_output("docker images --quiet") == ""


def test_another_image_than_the_wanted_one_is_refused(pull):
    run = pull(llamacpp_image_id=f"sha256:{'0' * 64}")
    assert run.rc != 0
    assert "llamacpp_image_id" in run.error


def test_the_image_is_pulled_once_and_is_the_one_that_was_pushed(pull, builder, manifest):
    run = pull(llamacpp_image_id=manifest["image"]["digests"][0])
    assert run.rc == 0, run.output
    assert PASSWORD not in run.output
    wanted = manifest["image"]["digests"][0]
    assert builder.check_output("docker inspect --format '{{.Id}}' llamacpp:latest") == wanted
    assert "localhost:5000" not in builder.check_output("cat /root/.docker/config.json")
    again = pull(llamacpp_image_id=wanted)
    assert re.search(rf"{BUILDER}\s.*changed=0\s.*failed=0", again.output), again.output
