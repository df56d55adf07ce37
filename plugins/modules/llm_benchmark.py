"""Ansible module: measure how fast a running OpenAI-compatible server is, for several clients at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_benchmark
short_description: Measures a llama_cpp.server with real HTTP requests of several clients at once
description:
  - Sends streaming requests to one server, each with a prompt of its own, and reports times and tokens.
  - Uses the Python standard library only, so that it runs on any managed host. Changes nothing.
  - It is real load; requests of other clients wait meanwhile, and spoil the figures. Skipped in check mode.
options:
  models:
    description: Aliases to measure, one after the other. The first is the one that is loaded at the start.
    type: list
    elements: str
    required: true
  unit:
    description: The server's systemd unit, which is asked how long its last start took; empty asks nothing.
    type: str
    default: ""
  clients:
    description: Numbers of clients that ask at once, each measured on its own.
    type: list
    elements: int
    default: [1, 2, 4, 8]
  repeats:
    description: How often each number of clients, and each switch of models, is measured; medians count.
    type: int
    default: 3
  max_tokens:
    description: Length of an answer, in tokens. A model that ends its answer earlier is taken at its word.
    type: int
    default: 128
  prompt_tokens:
    description: Length of a prompt, in tokens, about.
    type: int
    default: 256
author: ansible-llamacpp
extends_documentation_fragment: [openai_server]
"""

RETURN = r"""
engine:
  description: Version that the server itself names (C(/openapi.json)); null when there was no answer.
  type: str
image:
  description: What the unit's C(docker run) starts; null where systemd says nothing.
  type: str
start_s:
  description: Seconds of the unit's last start, from C(docker run) to the first answer; null if unknown.
  type: float
machine:
  description: processor, processors, memory_bytes, gpus (what nvidia-smi prints, one line each).
  type: dict
models:
  description: >-
    Per alias prompt_tokens (as counted by the server), counted_by (usage or chunks), switch (first_s,
    warm_s and all times in warm; only with several models) and rounds. A round has clients,
    first_token_s and first_token_max_s, prompt_tokens_per_s (one client only), tokens_per_s (of one
    stream), total_tokens_per_s, tokens (of a stream), complete, cut and failed (numbers of streams) and
    errors (first text of each kind).
  type: dict
problems:
  description: One line per thing that could not be measured.
  type: list
"""

import concurrent.futures
import http.client
import os
import platform
import random
import re
import threading
import time
from statistics import median

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.openai_api import CLIENT_ARGUMENTS, Broken, Client, CutOff

ERRORS = (Broken, OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError)

# Short, frequent words, one token each in most vocabularies: a list that even a small model goes on with.
WORDS = """
    time year people way day man thing woman life child world school state family student group country
    problem hand part place case week company system program question work number night point home water
    room mother area money story fact month lot right study book eye job word business issue side kind head
    house service friend father power hour game line end member law car city name team minute idea body back
    parent face level office door health person art war history party result change morning reason research
    girl guy moment air teacher force education foot boy age policy music mind step light ground field stone
    river tree road king paper wind fire gold ship land sea star summer winter garden bridge window market
""".split()  # noqa: SIM905


class Prompts:
    """Endless prompts, all of the same words in another order, so of the same length but for a token or two.

    llama_cpp.server keeps what it has computed for the beginning that a prompt has in common with the
    one before it, so each begins with another word.

    words: how many a prompt has. chance: a random.Random.
    """

    def __init__(self, words, chance):
        self.words = (WORDS * (words // len(WORDS) + 1))[:words]
        self.chance = chance
        self.firsts = []

    def next(self):
        """Returns the next prompt."""
        if not self.firsts:
            self.firsts = self.chance.sample(self.words, len(self.words))
        rest = self.words.copy()
        first = self.firsts.pop()
        rest.remove(first)
        self.chance.shuffle(rest)
        return ", ".join([first, *rest]) + ","


def request(model, prompt, max_tokens):
    """Returns the body of a request that continues the prompt as it stands.

    /v1/completions, because the chat template's words in front of every question would come from the cache.
    """
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}


def stream(client, body, limit=None):
    """Sends one streaming request; never raises.

    limit: what an answer holds that ends because it is long enough, in tokens, where that is known.

    Returns {outcome: complete, cut or failed; error; begun, ended: monotonic seconds; times: of each chunk
    with text, seconds since begun; tokens; counted_by: usage, or chunks when the server does not tell}.
    """
    result = {"outcome": "complete", "error": None, "times": [], "begun": time.monotonic()}
    finish, usage = None, {}
    body = dict(body, stream_options={"include_usage": True})
    try:
        for seconds, event in client.stream("/v1/completions", body):
            if "error" in event:
                raise Broken("error in the stream: {}".format(str(event["error"])[:200]))
            usage = event.get("usage") or usage
            for choice in event.get("choices") or []:
                if choice.get("text"):
                    result["times"].append(seconds)
                finish = choice.get("finish_reason") or finish
        if finish not in ("stop", "length"):
            raise CutOff(f"the stream was cut off (finish_reason {finish})")
        if not result["times"]:
            raise Broken("the stream holds no text")
    except CutOff as error:
        result.update(outcome="cut", error=str(error))
    except ERRORS as error:
        result.update(outcome="failed", error=str(error) or repr(error))
    result["ended"] = time.monotonic()
    result["counted_by"] = "usage" if usage.get("completion_tokens") else "chunks"
    # Several tokens can share a chunk (characters of several bytes do), but the longest answer is known.
    known = limit if finish == "length" else None
    result["tokens"] = usage.get("completion_tokens") or known or len(result["times"])
    return result


def at_once(client, bodies, limit=None):
    """Sends streaming requests at the same time, one client each; returns their results, see stream()."""
    start = threading.Barrier(len(bodies))

    def one(body):
        start.wait()
        return stream(client, body, limit)

    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(one, bodies))


def middle(values, digits=3):
    """Returns the median of those that are not None, rounded; None when there is none."""
    values = [value for value in values if value is not None]
    return round(median(values), digits) if values else None


def stream_rate(result):
    """Returns the tokens per second of one stream after its first chunk; None under two chunks."""
    times = result["times"]
    spent = times[-1] - times[0]
    if len(times) < 2 or spent <= 0:
        return None
    return result["tokens"] * (len(times) - 1) / len(times) / spent


def summarise(repeats, prompt_tokens):
    """Returns the figures of all repeats with the same number of clients, as in RETURN.

    repeats: a list of results of at_once(). prompt_tokens: of each prompt, or None.
    """
    streams = [result for results in repeats for result in results]
    complete = [result for result in streams if result["outcome"] == "complete"]
    firsts = [result["times"][0] for result in complete]
    errors = {}
    for result in streams:
        if result["error"]:
            errors.setdefault(result["outcome"], result["error"])

    def total(results):
        spent = max(result["ended"] for result in results) - min(result["begun"] for result in results)
        return sum(result["tokens"] for result in results) / spent

    alone = len(repeats[0]) == 1 and prompt_tokens
    return {
        "clients": len(repeats[0]),
        "first_token_s": middle(firsts),
        "first_token_max_s": round(max(firsts), 3) if firsts else None,
        "prompt_tokens_per_s": middle([prompt_tokens / first for first in firsts], 1) if alone else None,
        "tokens_per_s": middle([stream_rate(result) for result in complete], 1),
        "total_tokens_per_s": middle([total(results) for results in repeats], 1) if complete else None,
        "tokens": middle([result["tokens"] for result in complete], 1),
        **{
            outcome: sum(result["outcome"] == outcome for result in streams)
            for outcome in ("complete", "cut", "failed")
        },
        "errors": sorted(errors.values()),
    }


def usage_of(client, body):
    """Asks without streaming; returns (prompt tokens, completion tokens, finish_reason), None if untold."""
    answer = client.json("/v1/completions", body)
    usage = answer.get("usage") or {}
    finish = answer["choices"][0].get("finish_reason")
    return usage.get("prompt_tokens"), usage.get("completion_tokens"), finish


def measure_model(client, model, options, chance):
    """Measures one model; returns its entry of RETURN's models. Raises Broken and the like (ERRORS).

    options: {clients, repeats, max_tokens, prompt_tokens}.
    """
    # How many tokens a word has is the vocabulary's affair. Loads the model, too.
    tokens = usage_of(client, request(model, Prompts(64, chance).next(), 1))[0]
    prompts = Prompts(max(8, round(options["prompt_tokens"] / ((tokens or 128) / 64))), chance)
    # The first long question after a start is slower than those that follow.
    prompt_tokens, answered, finish = usage_of(client, request(model, prompts.next(), options["max_tokens"]))
    limit = answered if finish == "length" else None
    rounds, counted_by = [], set()
    for clients in options["clients"]:
        repeats = []
        for _ in range(options["repeats"]):
            bodies = [request(model, prompts.next(), options["max_tokens"]) for _ in range(clients)]
            repeats.append(at_once(client, bodies, limit))
            counted_by |= {result["counted_by"] for result in repeats[-1] if result["outcome"] == "complete"}
        rounds.append(summarise(repeats, prompt_tokens))
        if not rounds[-1]["complete"]:
            break  # more clients would fail as well, and each may take until the time-out
    return {
        "prompt_tokens": prompt_tokens,
        "counted_by": "usage" if counted_by == {"usage"} else "chunks",
        "switch": {},
        "rounds": rounds,
    }


def switch(client, model):
    """Asks for one token; returns the seconds that took, loading included. Raises Broken."""
    result = stream(client, request(model, "One, two,", 1))
    if result["outcome"] != "complete":
        raise Broken(result["error"])
    return round(result["ended"] - result["begun"], 3)


def measure_switches(client, models, repeats, problems):
    """Goes round the models; returns {alias: {first_s, warm_s, warm}} and adds to problems.

    Which model is loaded, nobody tells. So the first one is asked before the clock runs, and measured last.
    """
    times = {model: [] for model in models}

    def go(model):
        try:
            return switch(client, model)
        except ERRORS as error:
            problems.append(f"switch to {model}: {error}")
            return None

    if go(models[0]) is None:
        return {}
    for _ in range(1 + repeats):
        for model in [*models[1:], models[0]]:
            times[model].append(go(model))
        if problems:
            break  # a model that cannot be loaded would be tried again and again
    return {
        model: {"first_s": first, "warm_s": middle(warm), "warm": warm}
        for model, (first, *warm) in times.items()
    }


def benchmark(client, models, options, chance=None):
    """Measures one server; returns engine, models and problems of RETURN. What fails is named there."""
    result = {"engine": None, "models": {}, "problems": []}
    try:
        result["engine"] = client.json("/openapi.json")["info"]["version"]
        listed = [entry["id"] for entry in client.json("/v1/models")["data"]]
    except ERRORS as error:
        result["problems"].append(f"cannot be measured: {error}")
        return result
    # llama_cpp.server answers for a model that it does not have with its first one.
    missing = [model for model in models if model not in listed]
    result["problems"] += [f"{model}: the server has only {', '.join(listed)}" for model in missing]
    models = [model for model in models if model in listed]
    switches = {}
    if len(models) > 1:
        switches = measure_switches(client, models, options["repeats"], result["problems"])
    for model in models:
        try:
            measured = measure_model(client, model, options, chance or random.Random())
        except ERRORS as error:
            result["problems"].append(f"{model}: {error}")
            continue
        measured["switch"] = switches.get(model, {})
        result["models"][model] = measured
    return result


def parse_unit(text):
    """Returns (image, start_s) from what `systemctl show` says of a unit; None where it does not say."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    command = re.search(r"argv\[\]=.* --label=\S+ (\S+)", found.get("ExecStart", ""))
    begun = int(found.get("ExecMainStartTimestampMonotonic") or 0)
    ready = int(found.get("ActiveEnterTimestampMonotonic") or 0)
    # While a start is under way, the last one's end stands before the new one's beginning.
    start_s = round((ready - begun) / 1e6, 1) if 0 < begun < ready else None
    return (command.group(1) if command else None), start_s


def machine(run_command, nvidia_smi):
    """Returns what this machine is, see RETURN.

    run_command: like AnsibleModule's. nvidia_smi: its path, or None.
    """

    def field(path, name):
        try:
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    if line.startswith(name):
                        return line.split(":", 1)[1].strip()
        except OSError:
            pass
        return None

    gpus = []
    if nvidia_smi:
        query = ["--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
        status, output, _ = run_command([nvidia_smi, *query])
        gpus = output.split("\n") if status == 0 else []
    memory = field("/proc/meminfo", "MemTotal")
    return {
        "processor": field("/proc/cpuinfo", "model name") or platform.machine(),
        "processors": os.cpu_count(),
        "memory_bytes": int(memory.split()[0]) * 1024 if memory else None,
        "gpus": [line.strip() for line in gpus if line.strip()],
    }


def main():
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            **CLIENT_ARGUMENTS,
            "models": {"type": "list", "elements": "str", "required": True},
            "unit": {"type": "str", "default": ""},
            "clients": {"type": "list", "elements": "int", "default": [1, 2, 4, 8]},
            "repeats": {"type": "int", "default": 3},
            "max_tokens": {"type": "int", "default": 128, "no_log": False},
            "prompt_tokens": {"type": "int", "default": 256, "no_log": False},
        },
        supports_check_mode=True,
    )
    options = {name: module.params[name] for name in ("clients", "repeats", "max_tokens", "prompt_tokens")}
    for name, least in (("repeats", 1), ("max_tokens", 2), ("prompt_tokens", 16)):
        if options[name] < least:
            module.fail_json(msg=f"{name} is {options[name]}, and has to be at least {least}")
    clients = options["clients"]
    if not clients or min(clients) < 1:
        module.fail_json(msg=f"clients is {clients}, and has to be a list of numbers above 0")
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="a benchmark needs a running server")
    client = Client.of(module.params)
    image = start_s = None
    systemctl = module.get_bin_path("systemctl")
    if module.params["unit"] and systemctl:
        properties = "ExecStart,ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic"
        status, output, _ = module.run_command(
            [systemctl, "show", module.params["unit"] + ".service", "--property=" + properties]
        )
        image, start_s = parse_unit(output) if status == 0 else (None, None)
    module.exit_json(
        changed=False,
        image=image,
        start_s=start_s,
        machine=machine(module.run_command, module.get_bin_path("nvidia-smi")),
        **benchmark(client, module.params["models"], options),
    )


if __name__ == "__main__":
    main()
