"""LiteLLM as a library and as a proxy before the gateway: the recipes of docs/clients.md.

Not part of `make test`, because the packages are 742 MB; docs/clients.md says how to run it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from recipes import RECIPES, assert_says, python_with, run_recipe
from test_4_clients import ANSWER, EMBEDDING, PIECES, SAYS
from testing import wait_until

KEY = "sk-of-the-proxy"


@pytest.fixture(scope="module")
def python():
    """The interpreter that has LiteLLM."""
    return python_with("litellm")


@pytest.fixture(scope="module")
def environment(gateway_url, client_key, ca_file):
    """What recipes read, for the gateway itself."""
    return {
        "OPENAI_BASE_URL": gateway_url,
        "OPENAI_API_KEY": client_key,
        "SSL_CERT_FILE": str(ca_file),
        "MODEL": "smollm2",
    }


@pytest.fixture(scope="module")
def proxy(python, environment, tmp_path_factory):
    """Address of LiteLLM's proxy, which has the gateway behind it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("proxy") / "log"
    where = ["--host", "127.0.0.1", "--port", str(port)]
    command = [python.parent / "litellm", "--config", "litellm-proxy.yaml", *where]
    settings = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=RECIPES, env=os.environ | environment | settings | path, stdout=output, stderr=output
        )

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    try:
        wait_until(is_up, "the proxy is up")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_litellm_gets_answers_streams_and_embeddings(python, environment):
    assert_says(run_recipe([python, "with_litellm.py"], **environment), ANSWER, PIECES, EMBEDDING)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"OPENAI_API_KEY": "wrong"}, "litellm.exceptions.AuthenticationError"),
        ({"MODEL": "no-such-model"}, "litellm.exceptions.NotFoundError"),
    ],
)
def test_litellm_tells_what_is_refused(python, environment, change, error):
    refused = run_recipe([python, "with_litellm.py"], **environment | change)
    assert refused.returncode != 0
    assert error in refused.stderr


def test_clients_of_litellms_proxy_get_what_those_of_the_gateway_get(proxy):
    run = run_recipe(
        [sys.executable, "with_openai.py"], OPENAI_BASE_URL=proxy, OPENAI_API_KEY=KEY, MODEL="smollm2"
    )
    assert_says(run, "models: smollm2 gemma3\n", *SAYS["with_openai.py"])


def test_litellms_proxy_refuses_models_that_it_does_not_list(proxy):
    run = run_recipe(
        [sys.executable, "with_openai.py"], OPENAI_BASE_URL=proxy, OPENAI_API_KEY=KEY, MODEL="no-such-model"
    )
    assert run.returncode != 0
    assert "openai.BadRequestError" in run.stderr
    assert "Invalid model name" in run.stderr
