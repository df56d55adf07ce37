"""What users' own clients get from the gateway: the recipes of docs/clients.md, run as they stand there.

LiteLLM's are in clients_litellm.py, which is too large for each run.
"""

from __future__ import annotations

import sys

import pytest
from recipes import assert_says, python_with, run_recipe

# More than one token: an answer that comes in one piece is no stream.
PIECES = r"streamed in ([4-9]|\d\d+) pieces"
ANSWER = "answer: The capital of France is Paris"
EMBEDDING = r"embedding: \d+ tokens, 576 numbers, first -?\d"
# By recipe: what it prints, and how it names a key and a model that are refused.
SAYS = {
    "curl.sh": [
        '"id": "smollm2".*"id": "gemma3"',
        r'"content":"The capital of France is Paris',
        r'(data: .*"delta": .*\n\n){4,}data: \[DONE\]',
        r'"embedding":\[\[-?\d',
    ],
    "with_openai.py": ["models: .*smollm2", ANSWER, PIECES, EMBEDDING],
    "with_langchain.py": [ANSWER, PIECES, r"embeddings: 2 texts, 576 numbers each, first -?\d"],
}
REFUSALS = {
    "curl.sh": ["invalid_api_key", "model_not_found"],
    "with_openai.py": ["openai.AuthenticationError", "openai.NotFoundError"],
    "with_langchain.py": ["OpenAIAuthenticationError", "OpenAIModelNotFoundError"],
}


@pytest.fixture(scope="module", params=SAYS)
def recipe(request, gateway_url, client_key, ca_file):
    """The name of a recipe, and a function that runs it; what it is given takes the place of good input."""
    name = request.param
    command = {
        "curl.sh": lambda: ["bash", name],
        "with_openai.py": lambda: [sys.executable, name],
        "with_langchain.py": lambda: [python_with("langchain"), name],
    }[name]()
    good = {
        "OPENAI_BASE_URL": gateway_url,
        "OPENAI_API_KEY": client_key,
        "SSL_CERT_FILE": str(ca_file),
        "MODEL": "smollm2",
    }
    return name, lambda **changes: run_recipe(command, **good | changes)


def test_a_client_gets_answers_streams_and_embeddings(recipe):
    name, run = recipe
    assert_says(run(), *SAYS[name])


def test_a_client_tells_that_its_key_is_refused(recipe):
    name, run = recipe
    refused = run(OPENAI_API_KEY="wrong")
    assert refused.returncode != 0
    assert REFUSALS[name][0] in refused.stdout + refused.stderr


def test_a_client_tells_that_there_is_no_such_model(recipe):
    name, run = recipe
    refused = run(MODEL="no-such-model")
    assert refused.returncode != 0
    assert REFUSALS[name][1] in refused.stdout + refused.stderr
    assert "Known are: smollm2, gemma3" in refused.stdout + refused.stderr
