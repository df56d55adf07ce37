"""The options that give a container its GPUs, and the judgement whether it uses them."""

import shlex

import pytest
from gpu_use import docker_gpu_options, gpu_use_problem, gpu_uuids

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MODEL = {"path": "/llamacpp/model/m.gguf", "alias": "vicuna-13b", "n_gpu_layers": -1}
GIB = 2**30


@pytest.mark.parametrize(
    ("gpus", "mode", "options"),
    [
        ([], "cdi", []),
        ([], "gpus", []),
        ([0], "cdi", ["--device=nvidia.com/gpu=0"]),
        ([1, UUID], "cdi", ["--device=nvidia.com/gpu=1", f"--device=nvidia.com/gpu={UUID}"]),
        ("all", "cdi", ["--device=nvidia.com/gpu=all"]),
        ([0], "gpus", ['--gpus="device=0"']),
        ([0, UUID], "gpus", [f'--gpus="device=0,{UUID}"']),
        ("all", "gpus", ["--gpus=all"]),
    ],
)
def test_each_form_of_gpus_becomes_options_of_docker_run(gpus, mode, options):
    written = docker_gpu_options(gpus, mode)
    assert shlex.split(" ".join(written)) == options, "as systemd and the shell read them"


@pytest.mark.parametrize(
    ("gpus", "uuids"),
    [([1], ["GPU-b"]), ([0, "GPU-b"], ["GPU-a", "GPU-b"]), ("all", ["GPU-a", "GPU-b"]), ([7], [])],
)
def test_the_gpus_of_an_instance_have_uuids(gpus, uuids):
    assert gpu_uuids(gpus, [{"index": 0, "uuid": "GPU-a"}, {"index": 1, "uuid": "GPU-b"}]) == uuids


def problem(log="", memory: int | None = None, file_size=13 * GIB, **settings) -> str:
    return gpu_use_problem(
        log, {} if memory is None else {UUID: memory}, MODEL | settings, file_size, "llamacpp"
    )


def test_the_engines_count_of_layers_is_believed():
    log = "load_tensors: offloading 40 repeating layers to GPU\nload_tensors: offloaded 41/41 layers to GPU\n"
    assert problem(log) == ""
    assert problem(log.replace("41/41", "20/41"), n_gpu_layers=20) == ""


def test_no_layer_on_a_gpu_is_serving_from_the_cpu():
    text = problem("load_tensors: offloaded 0/41 layers to GPU\n", memory=GIB)
    assert text.startswith("llamacpp is serving from the CPU: the engine put 0 of 41 layers of vicuna-13b")


def test_the_last_loaded_model_counts():
    assert "0 of 33" in problem("offloaded 41/41 layers to GPU\noffloaded 0/33 layers to GPU\n")


def test_without_a_log_the_memory_on_the_gpus_tells():
    assert problem(memory=14 * GIB) == ""
    assert "serving from the CPU: its processes use 512 MiB on GPUs" in problem(memory=GIB // 2)
    assert "serving from the CPU: its processes use 0 MiB on GPUs" in problem()
    assert problem(memory=GIB, n_gpu_layers=3) == "", "a part of the layers needs a part of the memory"


def test_what_cannot_be_told_is_not_called_well():
    assert "cannot be told" in problem(memory=0)


@pytest.mark.parametrize("settings", [{"n_gpu_layers": 0}])
def test_a_model_that_is_to_stay_on_the_cpu_may(settings):
    assert problem(**settings) == ""
