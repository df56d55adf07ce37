"""Who may connect: the sources as nftables takes them, and the rules, rendered by Ansible itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from firewall_sources import firewall_sources

PROJECT = Path(__file__).resolve().parents[2]
ROLE = PROJECT / "roles/llm_firewall"

PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: [{project}/group_vars/llm_hosts.yml, {case}]
  vars:
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
  tasks:
    - name: Rules are rendered
      ansible.builtin.template:
        src: {role}/templates/llamacpp-firewall.nft.j2
        dest: {out}/rules.nft
        mode: "0600"
      vars: {task_vars}
"""


@pytest.fixture
def rules(tmp_path, run_playbook):
    """Returns a function: variables -> the rules, with the lines as nft lists them."""

    def rendered(**variables) -> list[str]:
        tasks = yaml.safe_load((ROLE / "tasks/present.yml").read_text(encoding="utf-8"))
        task = next(task for task in tasks if "ansible.builtin.template" in task and "vars" in task)
        case = tmp_path / "case.yml"
        case.write_text(json.dumps({"llm_firewall_old_ports": []} | variables), encoding="utf-8")
        task_vars = json.dumps(task["vars"]).replace("'templates/", f"'{ROLE}/templates/")
        run_playbook(
            PLAYBOOK.format(project=PROJECT, role=ROLE, case=case, out=tmp_path, task_vars=task_vars)
        )
        # Where nft is there and may be asked, it has the last word; what it reads on a host is tested there.
        if shutil.which("nft") and os.geteuid() == 0:
            subprocess.run(["nft", "-c", "-f", tmp_path / "rules.nft"], check=True)
        return [line.strip() for line in (tmp_path / "rules.nft").read_text().splitlines()]

    return rendered


def test_sources_are_sorted_by_family_and_do_not_overlap():
    sources = [
        "10.1.0.0/16",
        "192.0.2.10",
        "fd00:1::/64",
        "10.0.0.0/8",
        "192.0.2.11/32",
        "FD00:1::1",
        "192.0.2.10",
    ]
    assert firewall_sources(sources) == {
        "ipv4": ["10.0.0.0/8", "192.0.2.10/31"],
        "ipv6": ["fd00:1::/64"],
    }
    assert firewall_sources([]) == {"ipv4": [], "ipv6": []}


def test_what_is_neither_address_nor_network_is_an_error():
    with pytest.raises(ValueError, match="gateway"):
        firewall_sources(["gateway"])


def test_the_rules_have_the_ports_of_instances_and_of_kept_releases(rules):
    text = rules(
        llm_allowed_sources=["10.0.0.0/8", "fd00:1::/64"],
        llm_instances=[{"name": "one", "port": 20081}, {"name": "two", "port": 20080}],
        llm_firewall_old_ports=[20090],
    )
    assert "elements = { 20080, 20081, 20090 }" in text
    assert "elements = { 10.0.0.0/8 }" in text
    assert "elements = { fd00:1::/64 }" in text


def test_the_rules_replace_their_own_table_and_touch_no_other(rules):
    text = rules(llm_allowed_sources=["10.0.0.0/8"])
    assert [line for line in text if line.startswith(("table", "delete", "flush", "add"))] == [
        "table inet llamacpp",
        "delete table inet llamacpp",
        "table inet llamacpp {",
    ]


def test_a_family_without_a_source_may_not_connect(rules):
    text = rules(llm_allowed_sources=["10.0.0.0/8"])
    assert sum(line.startswith("elements") for line in text) == 2  # ports and IPv4
    assert text.index("counter drop") > text.index("ip6 saddr @allowed_ipv6 accept")


def test_the_rules_tell_by_a_hash_which_they_are(rules):
    def comment(**variables):
        return next(line for line in rules(**variables) if line.startswith("comment"))

    one = comment(llm_allowed_sources=["10.0.0.0/8"])
    assert one == comment(llm_allowed_sources=["10.0.0.0/8", "10.1.0.0/16"])
    assert one != comment(llm_allowed_sources=["10.0.0.0/9"])
    assert one != comment(llm_allowed_sources=["10.0.0.0/8"], llm_firewall_old_ports=[20090])
