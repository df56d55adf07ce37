"""A host that reaches nothing serves what the bundle has brought."""

from __future__ import annotations

import json

QUESTION = {"model": "smollm2", "temperature": 0, "max_tokens": 16}
# The host's own client: nothing can be sent to it from here.
ASK = """
import json, sys, urllib.request
body = json.dumps(json.loads(sys.argv[1])).encode()
headers = {"Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:20080/v1/chat/completions", body, headers)
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""


def test_the_host_reaches_nothing(host):
    assert host.check_output("ip -json route show default") in ("", "[ ]", "[]")
    # Docker's own bridge leads to its containers.
    names = {link["ifname"] for link in json.loads(host.check_output("ip -json link show"))}
    assert not [name for name in names if name.startswith(("eth", "en"))], names
    assert host.run("getent hosts example.com").stdout == ""


def test_models_answer_from_the_host_itself(host):
    question = QUESTION | {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    answer = json.loads(host.check_output("python3 -c %s %s", ASK, json.dumps(question)))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_all_promises_are_kept(play):
    run = play("smoke.yml")
    assert run.rc == 0, run.output
    assert " 0 broken" in run.output


def test_the_image_is_that_of_the_bundle(host, manifest, container):
    assert container()["Image"] in manifest["image"]["digests"]


def test_the_models_are_those_of_the_bundle(host, manifest):
    assert len(manifest["models"]) == 2
    for model in manifest["models"]:
        assert host.file(f"/home/llm/llamacpp/model/{model['file']}").sha256sum == model["sha256"]


def test_docker_came_from_the_bundle(host, manifest):
    (packages,) = manifest["packages"].values()
    installed = host.check_output("dpkg-query --show --showformat='${Version}' docker.io")
    assert installed == packages["docker.io"]
    assert "file:/var/lib/llm-packages" in host.check_output("apt-cache policy docker.io")
