"""The image that was built here, on its way to other hosts."""

from __future__ import annotations

import re
import tarfile


def test_image_yml_brings_the_built_image_here_as_an_archive(host, play):
    wanted = host.check_output("docker inspect llamacpp --format '{{.Config.Image}}'")
    run = play("image.yml")
    assert run.rc == 0, run.output
    assert run.count("changed") == 0, "nothing was to be built, and nothing is left behind"
    path = re.search(r"llamacpp_image_archive: (\S+)", run.output).group(1)
    with tarfile.open(path) as archive:
        assert f'"{wanted}"' in archive.extractfile("manifest.json").read().decode()
