"""Ansible module: ask a running OpenAI-compatible server to keep its promises."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_smoke
short_description: Checks a llama_cpp.server with real HTTP requests
description:
  - Sends real requests to one server and reports, promise by promise, what held and what was measured.
  - Uses the Python standard library only, so that it runs on any managed host. Changes nothing.
  - Loads every model once, so requests of other clients wait meanwhile. Skipped in check mode.
options:
  models:
    description: Aliases that the server must list, no more and no less.
    type: list
    elements: str
    required: true
  embeddings:
    description: Whether the models were deployed with C(embedding=true).
    type: bool
    default: true
  max_tokens:
    description: Longest answer asked for, in tokens.
    type: int
    default: 48
author: ansible-llamacpp
extends_documentation_fragment: [openai_server]
"""

RETURN = r"""
broken:
  description: One line per broken promise; empty when all held.
  type: list
kept:
  description: One line per promise that held.
  type: list
models:
  description: >-
    Per alias what was measured. answer (text), prompt_tokens, completion_tokens, tokens_per_second,
    first_token_s, load_s (to the first token, from asking while another model is loaded),
    embedding_length.
  type: dict
switch:
  description: >-
    Seconds of the first and of a repeated switch to the second model, first_s and repeated_s;
    empty with one model.
  type: dict
"""

import http.client
import json
import math
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.openai_api import CLIENT_ARGUMENTS, Broken, Client, chat, check_answer

QUESTION = "What is the capital of France? Answer in one sentence."
STREAMED = "Name three colours of the rainbow."  # not QUESTION: its prompt would still be in the cache
QUESTION_JA = "日本の首都はどこですか。一文で答えてください。"


def check_stream(client, model, question, max_tokens):
    """Asks with streaming; returns {first_token_s, tokens_per_second (None under two tokens)}."""
    times, finish = [], None
    for seconds, event in client.stream("/v1/chat/completions", chat(model, question, max_tokens)):
        if "error" in event:
            raise Broken("error in the stream: {}".format(json.dumps(event["error"])[:200]))
        choice = event["choices"][0]
        if choice["delta"].get("content"):
            times.append(seconds)
        finish = choice.get("finish_reason") or finish
    if not times:
        raise Broken("the stream holds no text")
    if finish not in ("stop", "length"):
        raise Broken(f"the stream was cut off (finish_reason {finish})")
    spent = times[-1] - times[0]
    return {
        "first_token_s": round(times[0], 3),
        "tokens_per_second": round((len(times) - 1) / spent, 1) if spent > 0 else None,
    }


def check_embedding(client, model):
    """Asks for an embedding; returns the vector's length. Decoder models answer one vector per token."""
    answer = client.json("/v1/embeddings", {"model": model, "input": QUESTION})
    try:
        vectors = answer["data"][0]["embedding"]
        vectors = vectors if isinstance(vectors[0], list) else [vectors]
        lengths = {len(vector) for vector in vectors}
        sound = not any(math.isnan(number) for vector in vectors for number in vector)
    except (KeyError, IndexError, TypeError) as error:
        raise Broken(f"not an embedding: {json.dumps(answer)[:200]}") from error
    if len(lengths) != 1 or 0 in lengths or not sound:
        raise Broken("vectors of lengths {}{}".format(sorted(lengths), "" if sound else " with NaN"))
    return lengths.pop()


def check_switch(client, model):
    """Asks a model for one token; returns the seconds it took, loading included."""
    started = time.monotonic()
    check_stream(client, model, QUESTION, 1)
    return round(time.monotonic() - started, 3)


def check_listed(client, models):
    """Raises Broken unless /v1/models lists exactly these aliases."""
    listed = sorted(entry["id"] for entry in client.json("/v1/models")["data"])
    if listed != sorted(models):
        raise Broken(f"listed are {listed}, deployed are {sorted(models)}")


def check_status(client, path, expected, api_key=None):
    """Raises Broken unless a GET answers with the expected status."""
    status = client.status(path, api_key)
    if status != expected:
        raise Broken(f"HTTP {status} instead of {expected}")


def smoke(client, models, embeddings=True, max_tokens=48):
    """Runs every check; returns the module's result without 'changed'.

    A broken promise does not end the run: the operator sees all of them. Without liveness that is all.
    """
    result = {"kept": [], "broken": [], "models": {}, "switch": {}}

    def promise(text, check, *arguments):
        try:
            value = check(client, *arguments)
        except (Broken, OSError, http.client.HTTPException, ValueError) as error:
            result["broken"].append(f"{text}: {error}")
            return None
        result["kept"].append(text)
        return value

    promise("is alive (GET /openapi.json)", check_status, "/openapi.json", 200)
    if result["broken"]:
        return result
    if client.api_key:
        wrong = client.api_key + "-wrong"
        promise("refuses a wrong API key", check_status, "/v1/models", 401, wrong)
    promise("lists exactly the deployed models", check_listed, models)
    for model in models:
        figures = result["models"].setdefault(model, {})
        figures["load_s"] = promise(f"{model} loads", check_switch, model)
        answer = promise(f"{model} answers", check_answer, model, QUESTION, max_tokens)
        if answer:
            figures["answer"] = answer[0]
            figures["prompt_tokens"] = answer[1]["prompt_tokens"]
            figures["completion_tokens"] = answer[1]["completion_tokens"]
        figures.update(promise(f"{model} streams", check_stream, model, STREAMED, max_tokens) or {})
        answer = promise(f"{model} takes Japanese", check_answer, model, QUESTION_JA, max_tokens)
        figures["answer_ja"] = answer[0] if answer else None
        if embeddings:
            figures["embedding_length"] = promise(f"{model} embeds", check_embedding, model)
    if len(models) > 1:
        first, second = models[0], models[1]
        result["switch"]["first_s"] = result["models"][second]["load_s"]
        # The server loads the first model at its start: only coming back to it shows how long that takes.
        back = promise(f"switches back to {first}", check_switch, first)
        result["models"][first]["load_s"] = back
        result["switch"]["repeated_s"] = promise(f"switches again to {second}", check_switch, second)
    return result


def main():
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            **CLIENT_ARGUMENTS,
            "models": {"type": "list", "elements": "str", "required": True},
            "embeddings": {"type": "bool", "default": True},
            "max_tokens": {"type": "int", "default": 48},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="a smoke test needs a running server", broken=[])
    client = Client.of(module.params)
    result = smoke(
        client,
        module.params["models"],
        module.params["embeddings"],
        module.params["max_tokens"],
    )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
