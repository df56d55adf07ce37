"""The files that roles/llamacpp_server writes, rendered by Ansible itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"

# Renders both templates as the role does, but without a host; task_vars are those of tasks/main.yml.
PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files:
    - {project}/roles/llamacpp_server/defaults/main.yml
    - {project}/group_vars/llm_hosts.yml
    - {case}
  vars:
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
    ansible_facts: {{systemd: {{version: "257"}}}}
    llamacpp_image_ref: llamacpp:0.3.36-cuda12-0123456789ab
    __llamacpp_server_instance: "{{{{ llm_instances[0] }}}}"
  tasks:
    - name: Files are rendered
      ansible.builtin.template:
        src: "{project}/roles/llamacpp_server/templates/{{{{ item }}}}.j2"
        dest: "{out}/{{{{ item }}}}"
        mode: "0600"
      loop: [config.json, instance.service]
      vars: {task_vars}
"""


@pytest.fixture
def render(tmp_path, run_playbook):
    """Returns a function: extra variables -> (config.json as a dict, text of the unit)."""

    def rendered(**variables) -> tuple[dict, str]:
        tasks = yaml.safe_load((PROJECT / "roles/llamacpp_server/tasks/main.yml").read_text(encoding="utf-8"))
        templates = PROJECT / "roles/llamacpp_server/templates"
        task = next(task for task in tasks if task.get("ansible.builtin.include_tasks") == "instance.yml")
        task_vars = json.dumps(task["vars"]).replace("'docker_run.j2'", f"'{templates}/docker_run.j2'")
        case = tmp_path / "case.yml"
        case.write_text(json.dumps(variables), encoding="utf-8")
        run_playbook(PLAYBOOK.format(project=PROJECT, case=case, out=tmp_path, task_vars=task_vars))
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        return config, (tmp_path / "instance.service").read_text(encoding="utf-8")

    return rendered


def test_unit_of_the_reference_deployment_is_the_golden_one(render):
    _, unit = render()
    assert unit == (GOLDEN / "llamacpp.service").read_text(encoding="utf-8")


def test_an_api_key_reaches_neither_the_unit_nor_config_json(render):
    config, unit = render(llm_api_key="s3cret-key")
    assert "s3cret-key" not in unit
    assert "s3cret-key" not in json.dumps(config)
    assert "--env-file=/etc/llamacpp/llamacpp.env" in unit


def test_with_a_certificate_config_json_names_it_and_another_one_is_another_container(render):
    pair = {"llm_tls_certificate": "a certificate", "llm_tls_private_key": "s3cret-key\n"}
    config, unit = render(**pair)
    assert (config["ssl_certfile"], config["ssl_keyfile"]) == ("/llamacpp/tls.crt", "/llamacpp/tls.key")
    assert "s3cret-key" not in unit + json.dumps(config)
    # Only what the container reads counts, and an end of line is not read.
    assert render(**pair | {"llm_tls_private_key": "s3cret-key"}) == (config, unit)
    for name in pair:
        assert render(**pair | {name: "renewed"})[1] != unit


def test_an_own_certificate_in_the_settings_is_left_alone(render):
    settings = {"ssl_certfile": "/llamacpp/model/own.crt", "ssl_keyfile": "/llamacpp/model/own.key"}
    config, _ = render(llm_server_settings=settings, llm_tls_certificate=None)
    assert {name: config[name] for name in settings} == settings


def test_limits_and_capabilities_reach_docker(render):
    _, unit = render(
        llamacpp_server_memory="16g",
        llamacpp_server_cpus="4",
        llamacpp_server_capabilities=["SYS_RESOURCE"],
        llamacpp_server_docker_options=["--ulimit=memlock=-1"],
        llamacpp_server_bind_address="127.0.0.1",
    )
    for option in (
        "--memory=16g",
        "--cpus=4",
        "--cap-add=SYS_RESOURCE",
        "--ulimit=memlock=-1",
        "--publish=127.0.0.1:20080:20080",
    ):
        assert option in unit


def test_a_second_instance_gets_the_shared_models_under_its_own_directory(render):
    _, unit = render(llm_instances=[{"name": "second", "port": 20081, "models": ["vicuna-13b"]}])
    assert "src=/home/llm/second,dst=/llamacpp,readonly" in unit
    assert "src=/home/llm/llamacpp/model,dst=/llamacpp/model,readonly" in unit


def test_linked_models_are_mounted_at_their_own_path_and_waited_for(render):
    models = [
        {"alias": name, "file": f"{name}.gguf", "path": f"{directory}/{name}.gguf", "link": link}
        for name, directory, link in (
            ("a", "/mnt/nfs/models", True),
            ("b", "/srv/models", True),
            ("copied", "/srv/copied", False),
            ("of-another-instance", "/srv/other", True),
        )
    ]
    instance = {"name": "one", "port": 20080, "models": ["a", "b", "copied"]}
    _, unit = render(llm_models=models, llm_instances=[instance])
    run = next(line for line in unit.replace("\\\n", "").splitlines() if line.startswith("ExecStart="))
    for directory in ("/mnt/nfs/models", "/srv/models"):
        assert f" --mount=type=bind,src={directory},dst={directory},readonly " in run
    assert "\nRequiresMountsFor=/mnt/nfs/models /srv/models\n" in unit
    assert "/srv/copied" not in unit
    assert "/srv/other" not in unit


@pytest.mark.parametrize(
    ("gpus", "mode", "option"),
    [
        ([1], "cdi", "--device=nvidia.com/gpu=1 "),
        (["GPU-8932f937", 0], "cdi", "--device=nvidia.com/gpu=GPU-8932f937 "),
        ("all", "cdi", "--device=nvidia.com/gpu=all "),
        ([0, 1], "gpus", """'--gpus="device=0,1"' """),
    ],
)
def test_an_instance_is_given_its_gpus_and_starts_only_if_the_engine_finds_them(render, gpus, mode, option):
    _, unit = render(
        llm_instances=[{"name": "one", "port": 20080, "gpus": gpus}], llamacpp_server_gpu_mode=mode
    )
    guard, run = (line for line in unit.replace("\\\n", "").splitlines() if "docker run" in line)
    assert option in run
    assert option in guard
    assert guard.startswith("ExecStartPre=docker run ")
    assert guard.endswith(" engine-info --require-gpu")


def test_an_instance_on_the_cpu_needs_no_gpu(render):
    _, unit = render(llm_instances=[{"name": "one", "port": 20080, "gpus": []}])
    assert "nvidia.com" not in unit
    assert "--gpus" not in unit
    assert "engine-info" not in unit


def test_what_runs_is_identified_by_its_release_label(render):
    def label(**variables) -> str:
        _, unit = render(**variables)
        return unit.split("--label=io.ansible-llamacpp.release=")[1].split()[0]

    base = label()
    assert label() == base
    assert label(llm_server_settings={}) != base, "a changed config.json"
    assert label(llamacpp_server_cpus="4") != base, "a changed option of docker run"
    assert label(llamacpp_image_ref="llamacpp:0.3.36-cuda12-ba9876543210") != base, "a changed image"
    assert label(llamacpp_server_restart_delay=9) == base, "nothing that runs has changed"
