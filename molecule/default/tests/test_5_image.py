"""The image that was built here: on its way to other hosts, and what is in it."""

from __future__ import annotations

import json
import re
import tarfile

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from testing import PROJECT


def test_image_yml_brings_the_built_image_here_as_an_archive(host, play, tmp_path):
    wanted = host.check_output("docker inspect llamacpp --format '{{.Config.Image}}'")
    # Not where it usually goes: other scenarios read that archive meanwhile.
    run = play("image.yml", image_archive=str(tmp_path / "image.tar"))
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, "nothing was to be built, and nothing is left behind"
    path = re.search(r"llamacpp_image_archive: (\S+)", run.output).group(1)
    with tarfile.open(path) as archive:
        assert f'"{wanted}"' in archive.extractfile("manifest.json").read().decode()


def test_sbom_yml_lists_what_is_in_the_deployed_image(host, play, container, untouched, tmp_path):
    file = tmp_path / "image.cdx.json"
    containers = host.check_output("docker ps --all --quiet")
    run = play("sbom.yml", sbom_file=str(file), sbom_scan_command="grep --count pkg:deb/debian/ {file}")
    assert run.rc == 0, run.output
    assert run.count("changed") == 0
    assert host.check_output("docker ps --all --quiet") == containers

    text = file.read_text(encoding="utf-8")
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, str(error)
    document = json.loads(text)
    about = {one["name"]: one["value"] for one in document["metadata"]["component"]["properties"]}
    assert about["ansible-llamacpp:image-id"] == container()["Image"]
    listed = {one["name"]: one.get("version") for one in document["components"]}
    engine = json.loads(host.check_output("docker exec llamacpp engine-info"))["version"]
    assert listed["llama-cpp-python"] == engine
    lock = (PROJECT / f"files/image/requirements-{engine}.txt").read_text(encoding="utf-8")
    assert f"\nfastapi=={listed['fastapi']} " in lock
    libgomp = host.check_output("docker exec llamacpp dpkg-query --show --showformat='${Version}' libgomp1")
    assert listed["libgomp1"] == libgomp
    assert listed["libggml-base.so"]

    run = play("sbom.yml", sbom_file=str(file), sbom_scan_command="grep --count no-such-package {file}")
    assert run.rc != 0
    assert "sbom_scan_command ended with status 1" in run.error
