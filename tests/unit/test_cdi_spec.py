"""A CDI specification is written anew only when it says something else than nvidia-ctk."""

import json

import pytest
import yaml
from cdi_spec import is_same_spec, service_environment

SPEC = {
    "cdiVersion": "0.7.0",
    "kind": "nvidia.com/gpu",
    "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}],
}
GENERATED = "---\n" + yaml.safe_dump(SPEC)


@pytest.mark.parametrize("text", [GENERATED, json.dumps(SPEC), yaml.safe_dump(SPEC, indent=6)])
def test_the_same_content_is_the_same_however_it_is_written(text):
    assert is_same_spec(text, GENERATED)


@pytest.mark.parametrize(
    "text", ["", "---\n", GENERATED.replace("nvidia0", "nvidia1"), "devices: [", GENERATED * 2]
)
def test_anything_else_is_another_specification(text):
    assert not is_same_spec(text, GENERATED)


def test_only_the_first_document_that_nvidia_ctk_prints_is_meant():
    assert is_same_spec(GENERATED, GENERATED + GENERATED.replace("/gpu", "/gpu.noncoherent"))


def test_an_environment_file_is_read_as_systemd_reads_it():
    text = """# NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/commented/out
NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/etc/cdi/nvidia.yaml
NVIDIA_CTK_CDI_GENERATE_DEVICE_NAME_STRATEGIES="index,uuid"
  EQUALS=a=b\x20
"""
    assert service_environment(text) == {
        "NVIDIA_CTK_CDI_OUTPUT_FILE_PATH": "/etc/cdi/nvidia.yaml",
        "NVIDIA_CTK_CDI_GENERATE_DEVICE_NAME_STRATEGIES": "index,uuid",
        "EQUALS": "a=b",
    }
    assert service_environment("") == {}
