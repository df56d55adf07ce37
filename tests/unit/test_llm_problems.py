"""Every message about wrong input, word for word."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from llm_problems import Origin, llm_known_variables, llm_problems

HASH = "a" * 64
MODEL = {"alias": "gemma3", "file": "g.gguf", "url": "https://m.example/g.gguf", "sha256": HASH}
INSTANCE = {"name": "llamacpp", "port": 20080}
ON_GPU = {"n_gpu_layers": -1}
LONG = "write what `sha256sum g.gguf` prints where the file is trusted, or `sha256: none` to waive the check"


@pytest.fixture
def problems(schema):
    """Returns a function: what is different from good input -> the problems."""

    def check(models=(MODEL,), instances=(INSTANCE,), server=None, defaults=None, **arguments):
        as_list = [list(x) if isinstance(x, tuple) else x for x in (models, instances)]
        return llm_problems(
            *copy.deepcopy(as_list),
            {} if server is None else server,
            {} if defaults is None else defaults,
            arguments.pop("schema", schema),
            **arguments,
        )

    return check


def model(**changes):
    """A good model with changes; None takes a key away."""
    changed = {**MODEL, **changes}
    return {key: value for key, value in changed.items() if value is not ...}


def instance(**changes):
    changed = {**INSTANCE, **changes}
    return {key: value for key, value in changed.items() if value is not ...}


def test_good_input_has_no_problem(problems):
    assert problems() == []
    assert problems(instances=[instance(gpus=[], models=["gemma3"])]) == []


def test_the_shipped_group_vars_have_no_problem(group_vars, schema):
    found = llm_problems(
        group_vars["llm_models"],
        group_vars["llm_instances"],
        group_vars["llm_server_settings"],
        group_vars["llm_model_defaults"],
        schema,
        backend=group_vars["llm_backend"],
    )
    assert found == []


M = "llm_models[0] (alias gemma3)"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("a", 'llm_models: must be a list of models, not "a" (string)'),
        (None, "llm_models: must be a list of models, not null (nothing was written)"),
        ({"a": 1}, "llm_models: must be a list of models, not {'a': 1} (dictionary)"),
        ([], "llm_models: is empty; give at least one model (alias, file, url)"),
        (["x"], 'llm_models[0]: must be a dictionary (alias, file, url, …), not "x" (string)'),
        ([model(alais="x")], f"{M}: alais is not a key here; did you mean alias?"),
        (
            [model(zzz=1)],
            f"{M}: zzz is not a key here; valid are alias, file, url, sha256, settings",
        ),
        ([model(alias=...)], "llm_models[0]: alias is missing; it must be given"),
        ([model(file=...)], f"{M}: file is missing; it must be given"),
        ([model(url=...)], f"{M}: url is missing; it must be given"),
        (
            [model(alias=3)],
            "llm_models[0]: alias is 3 (integer);"
            " it must be a string without spaces around it; write it in quotes",
        ),
        (
            [model(alias=" a")],
            'llm_models[0] (alias  a): alias is " a" (string); it must be a string without spaces around it',
        ),
        (
            [model(file=True)],
            f"{M}: file is true (true or false);"
            " it must be a string without spaces around it; write it in quotes",
        ),
        (
            [model(url=[])],
            f"{M}: url is [] (list); it must be a string without spaces around it",
        ),
        (
            [MODEL, MODEL],
            "llm_models[1] (alias gemma3): alias gemma3 is already that of llm_models[0], and the"
            " server would know only one of them; give each model its own alias",
        ),
        (
            [model(file="a/b.gguf")],
            f"{M}: file a/b.gguf must be a plain file name; the directory is llm_models_dir for all of them",
        ),
        (
            [model(file="..gguf")],
            f"{M}: file ..gguf must be a plain file name; the directory is llm_models_dir for all of them",
        ),
        (
            [model(file="g.bin")],
            f"{M}: file g.bin must end in .gguf; the server reads no other format",
        ),
        (
            [MODEL, model(alias="b", url="https://other.example/g.gguf")],
            "llm_models[1] (alias b): file g.gguf is also that of llm_models[0], but with another"
            " url; models that share a file need the same url and sha256",
        ),
        (
            [MODEL, model(alias="b", sha256="none")],
            "llm_models[1] (alias b): file g.gguf is also that of llm_models[0], but with another"
            " sha256; models that share a file need the same url and sha256",
        ),
        (
            [model(url="ftp://user:secret@m.example/g.gguf")],
            f"{M}: url ftp://m.example/g.gguf must be absolute, like https://host/path/file.gguf",
        ),
        (
            [model(url="/g.gguf")],
            f"{M}: url /g.gguf must be absolute, like https://host/path/file.gguf",
        ),
        (
            [model(url="https://[bad/g.gguf")],
            f"{M}: url https://[bad/g.gguf must be absolute, like https://host/path/file.gguf",
        ),
        (
            [model(url="https://huggingface.co/o/r/blob/main/g.gguf")],
            f"{M}: url is the web page of the file; write /resolve/ instead of /blob/ in it",
        ),
        (
            [model(sha256=...)],
            f"{M}: sha256 is missing, and only https://huggingface.co announces that of its files; {LONG}",
        ),
        (
            [model(sha256="abc")],
            f"{M}: sha256 abc is not 64 hexadecimal digits (it has 3 characters); {LONG}",
        ),
        (
            [model(sha256=None)],
            f"{M}: sha256 is null (nothing was written); it must be a string of 64 hexadecimal"
            f" digits (in quotes); {LONG}",
        ),
        (
            [model(sha256=12)],
            f"{M}: sha256 is 12 (integer); it must be a string of 64 hexadecimal digits (in quotes); {LONG}",
        ),
        (
            [model(settings=None)],
            f"{M}: settings must be a dictionary (name: value), not null (nothing was written);"
            " {} is empty",
        ),
        (
            [model(settings={"model": "x"})],
            f"{M}: settings.model must not be set: it follows from the model's file",
        ),
        (
            [model(settings={"model_alias": "x"})],
            f"{M}: settings.model_alias must not be set: it follows from the model's alias",
        ),
        (
            [model(settings={"n_ctxx": 1})],
            f"{M}: settings.n_ctxx is not a setting of llama_cpp.server 0.3.36; did you mean n_ctx?",
        ),
        (
            [model(settings={"n_ctx": "4096"})],
            f'{M}: settings.n_ctx is "4096" (string); it must be an integer of at least 0;'
            " write it without quotes",
        ),
        (
            [model(settings={"n_ctx": -1})],
            f"{M}: settings.n_ctx is -1 (integer); it must be an integer of at least 0",
        ),
        (
            [model(settings={"n_ctx": True})],
            f"{M}: settings.n_ctx is true (true or false); it must be an integer of at least 0",
        ),
        (
            [model(settings={"n_ctx": 1.5})],
            f"{M}: settings.n_ctx is 1.5 (number); it must be an integer of at least 0",
        ),
        (
            [model(settings={"embedding": "true"})],
            f'{M}: settings.embedding is "true" (string); it must be true or false; write it without quotes',
        ),
        (
            [model(settings={"cache_type": "rma"})],
            f'{M}: settings.cache_type is "rma" (string); it must be one of ram, disk',
        ),
        (
            [model(settings={"tensor_split": ["a"]})],
            f"{M}: settings.tensor_split is ['a'] (list);"
            " it must be null or a list whose entries are each a number",
        ),
        (
            [model(settings={"chat_format": 1})],
            f"{M}: settings.chat_format is 1 (integer); it must be null or a string",
        ),
    ],
)
def test_each_problem_of_the_models_has_its_message(problems, models, message):
    assert problems(models=models) == [message]


def test_an_unknown_chat_format_lists_the_valid_ones(problems, schema):
    (message,) = problems(models=[model(settings={"chat_format": "vicunia"})])
    assert message == (
        f"{M}: settings.chat_format vicunia is not a chat format of llama_cpp.server 0.3.36;"
        f" did you mean vicuna? valid are {', '.join(schema['chat_formats'])}"
        " (left out: the template in the GGUF file)"
    )
    (message,) = problems(models=[model(settings={"chat_format": "0"})])
    assert "did you mean" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_freq_base": 10000},  # an integer for a number
        {"n_threads": -1, "n_threads_batch": -1},  # the engine makes the number of CPUs of it
        {"numa": True},
        {"numa": 1},
        {"tensor_split": [1, 0.5]},
        {"tensor_split": None},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"cache": True, "cache_type": "disk"},
        {"chat_format": None},
        {"chat_format": "hf-autotokenizer", "hf_pretrained_model_name_or_path": "o/r"},
    ],
)
def test_what_the_server_takes_is_no_problem(problems, settings):
    assert problems(models=[model(settings=settings)], defaults=settings) == []


@pytest.mark.parametrize("sha256", ["none", HASH.upper()])
def test_a_waiver_and_upper_case_digits_are_no_problem(problems, sha256):
    assert problems(models=[model(sha256=sha256)]) == []


def test_the_hub_needs_no_sha256(problems):
    hub = {"alias": "a", "file": "a.gguf", "url": "https://huggingface.co/o/r/resolve/main/a.gguf"}
    assert problems(models=[hub]) == []
    mirror = {**hub, "url": "https://mirror.example/a.gguf"}
    assert problems(models=[mirror], hub_url="https://mirror.example/") == []
    assert len(problems(models=[{**hub, "url": "https://huggingface.co.evil.example/a.gguf"}])) == 1


def test_two_models_may_share_one_file(problems):
    assert problems(models=[MODEL, model(alias="b", sha256=HASH.upper())]) == []


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (
            "x",
            'llm_server_settings: must be a dictionary (name: value), not "x" (string); {} is empty',
        ),
        (
            {"host": "::"},
            "llm_server_settings: host must not be set:"
            " the server always listens on all addresses of its container",
        ),
        (
            {"port": 1},
            "llm_server_settings: port must not be set: set the instance's port in llm_instances",
        ),
        (
            {"models": []},
            "llm_server_settings: models must not be set: set them in llm_models and llm_instances",
        ),
        (
            {"api_key": "s3cret"},
            "llm_server_settings: api_key must not be set: set llm_api_key from the vault instead,"
            " so that the key never stands in config.json",
        ),
        (
            {"interupt_requests": True},
            "llm_server_settings: interupt_requests is not a setting of llama_cpp.server 0.3.36;"
            " did you mean interrupt_requests?",
        ),
        (
            {"qqq": True},
            "llm_server_settings: qqq is not a setting of llama_cpp.server 0.3.36; valid are"
            " ssl_keyfile, ssl_certfile, interrupt_requests, disable_ping_events, root_path",
        ),
        (
            {"interrupt_requests": 0},
            "llm_server_settings: interrupt_requests is 0 (integer); it must be true or false",
        ),
    ],
)
def test_each_problem_of_the_server_settings_has_its_message(problems, server, message):
    assert problems(server=server) == [message]


def test_model_defaults_are_checked_like_settings_of_a_model(problems):
    assert problems(defaults={"n_batch": 0, "model_alias": "x"}) == [
        "llm_model_defaults: n_batch is 0 (integer); it must be an integer of at least 1",
        "llm_model_defaults: model_alias must not be set: it follows from the model's alias",
    ]
    assert problems(defaults=[]) == [
        "llm_model_defaults: must be a dictionary (name: value), not [] (list); {} is empty"
    ]


I = "llm_instances[0] (name llamacpp)"  # noqa: E741


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (7, "llm_instances: must be a list of instances, not 7 (integer)"),
        ([], "llm_instances: is empty, so nothing would run; give at least one (name, port)"),
        ([8], "llm_instances[0]: must be a dictionary (name, port, …), not 8 (integer)"),
        ([instance(prot=1)], f"{I}: prot is not a key here; did you mean port?"),
        ([instance(name=...)], "llm_instances[0]: name is missing; it must be given"),
        ([instance(port=...)], f"{I}: port is missing; it must be given"),
        (
            [instance(name="a b")],
            'llm_instances[0] (name a b): name is "a b" (string); it names a container, a host and'
            " a systemd unit, so it must be 2 to 63 letters, digits, '-', '_' or '.',"
            " and begin with a letter or digit",
        ),
        (
            [instance(name=5)],
            "llm_instances[0]: name is 5 (integer); it names a container, a host and"
            " a systemd unit, so it must be 2 to 63 letters, digits, '-', '_' or '.',"
            " and begin with a letter or digit",
        ),
        (
            [instance(name="docker")],
            "llm_instances[0] (name docker): name docker would give docker.service, which is or"
            " looks like a unit of the system; take another name",
        ),
        (
            [INSTANCE, instance(port=20081)],
            "llm_instances[1] (name llamacpp): name llamacpp is already that of llm_instances[0];"
            " give each instance its own name",
        ),
        (
            [INSTANCE, instance(name="two")],
            "llm_instances[1] (name two): port 20080 is already that of llm_instances[0];"
            " give each instance its own port",
        ),
        (
            [instance(port="20080")],
            f'{I}: port is "20080" (string); it must be an integer from 1 to 65535; write it without quotes',
        ),
        (
            [instance(port=True)],
            f"{I}: port is true (true or false); it must be an integer from 1 to 65535",
        ),
        (
            [instance(port=65536)],
            f"{I}: port is 65536 (integer); it must be an integer from 1 to 65535",
        ),
        ([instance(port=0)], f"{I}: port is 0 (integer); it must be an integer from 1 to 65535"),
        (
            [instance(gpus=0)],
            f"{I}: gpus is 0 (integer); it must be a list of GPU indexes or UUIDs, [] for none, or all",
        ),
        (
            [instance(models="gemma3")],
            f'{I}: models is "gemma3" (string);'
            " it must be a list of aliases of llm_models (left out: all of them)",
        ),
        (
            [instance(models=[])],
            f"{I}: models is empty; name at least one alias, or leave it out to serve all",
        ),
        (
            [instance(models=["gema3"])],
            f'{I}: models names "gema3", which llm_models does not have; did you mean gemma3?'
            " (it has: gemma3)",
        ),
        (
            [instance(models=["x"])],
            f'{I}: models names "x", which llm_models does not have (it has: gemma3)',
        ),
        (
            [instance(models=["gemma3", "gemma3"])],
            f"{I}: models has gemma3 twice; name each alias once",
        ),
    ],
)
def test_each_problem_of_the_instances_has_its_message(problems, instances, message):
    assert problems(instances=instances) == [message]


@pytest.mark.parametrize("name", ["systemd-x", "my.service", "ssh"])
def test_an_instance_never_takes_the_name_of_a_unit_of_the_system(problems, name):
    assert len(problems(instances=[instance(name=name)])) == 1


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (
            [-1],
            f"{I}: gpus has -1 (integer); a GPU is an index (0, 1, …) or a UUID (GPU-…, see nvidia-smi -L)",
        ),
        (
            ["0"],
            f'{I}: gpus has "0" (string); a GPU is an index (0, 1, …) or a UUID (GPU-…, see nvidia-smi -L)',
        ),
        ([0, 0], f"{I}: gpus has 0 twice; name each GPU once"),
    ],
)
def test_each_problem_of_the_gpus_has_its_message(problems, gpus, message):
    assert problems(instances=[instance(gpus=gpus)], defaults=ON_GPU, backend="cuda") == [message]


@pytest.mark.parametrize("backend", ["auto", "cuda"])
@pytest.mark.parametrize("gpus", [[], [0, 1], "all", ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"]])
def test_a_gpu_backend_takes_indexes_uuids_and_all(problems, backend, gpus):
    assert problems(instances=[instance(gpus=gpus)], defaults=ON_GPU, backend=backend) == []


def test_a_model_that_nobody_sends_to_the_gpu_of_its_instance_is_one_problem(problems):
    found = problems(instances=[instance(gpus=[0]), instance(name="two", port=2, gpus=[1])], backend="auto")
    assert found == [
        "llm_models[0] (alias gemma3): settings lack n_gpu_layers, so the engine keeps it on the CPU, but"
        " instance llamacpp has GPUs; set n_gpu_layers: -1 (all layers), or 0 if that is meant"
    ]


@pytest.mark.parametrize("layers", [-1, 0, 20])
def test_it_may_be_sent_there_kept_away_or_shared(problems, layers):
    own = [model(settings={"n_gpu_layers": layers})]
    assert problems(models=own, instances=[instance(gpus=[0])], backend="auto") == []


def test_a_model_of_no_instance_with_gpus_needs_no_layers_there(problems):
    instances = [instance(gpus=[]), instance(name="two", port=2, gpus=[0], models=["other"])]
    other = model(alias="other", file="o.gguf", settings=ON_GPU)
    assert problems(models=[model(), other], instances=instances, backend="auto") == []


@pytest.mark.parametrize(("gpus", "shown"), [([0], "[0]"), ("all", '"all"')])
def test_the_cpu_backend_takes_no_gpus(problems, gpus, shown):
    assert problems(instances=[instance(gpus=gpus)], backend="cpu") == [
        f"{I}: gpus is {shown}, but llm_backend is cpu, so gpus must be [];"
        " set gpus: [], or llm_backend: auto"
    ]
    assert problems(instances=[instance(gpus=[])], backend="cpu") == []


def test_an_unknown_backend_is_one_problem_with_the_valid_ones(problems):
    assert problems(instances=[instance(gpus=[0])], backend="cudda") == [
        'llm_backend: "cudda" is not a backend; did you mean cuda?'
    ]
    assert problems(backend="vulkan") == ['llm_backend: "vulkan" is not a backend; valid are auto, cpu, cuda']


def test_a_misspelled_variable_is_named_with_the_one_that_was_meant(problems):
    assert problems(
        names=["llm_instance", "llm_instances", "llm_colour", "ansible_instances"],
        known=["llm_instances", "llm_models"],
    ) == [
        "llm_instance is not a variable of this project; did you mean llm_instances?"
        " (if it is your own, list it in preflight_own_variables)"
    ]


def test_an_unknown_version_of_the_server_is_one_problem(problems):
    assert problems(schema={}) == [
        "llm_server_version: the settings of this version are not known to this release"
        " (files/image/settings-VERSION.json); take a version it has"
    ]


def test_paths_on_the_host_are_absolute(problems):
    assert problems(paths={"llm_models_dir": "models", "llm_ca_bundle": ""}) == [
        'llm_models_dir: "models" must be an absolute path on the host'
    ]


def test_only_proxy_variables_are_in_the_proxy_environment(problems):
    assert problems(proxies={"htps_proxy": "x", "HTTP_PROXY": "y", "no_proxy": ["a"]}) == [
        "llm_proxy_environment: htps_proxy is not a proxy variable;"
        " did you mean https_proxy or http_proxy or no_proxy?",
        "llm_proxy_environment: no_proxy is ['a'] (list); it must be a string",
    ]


def test_all_problems_are_reported_not_only_the_first(problems):
    found = problems(
        models=[model(alias=3, file="x", sha256="y")], instances=[{"port": 0}], server={"port": 1}
    )
    assert len(found) == 6
    assert all("\n" not in line for line in found)


def test_every_problem_is_one_short_line_whatever_was_written(problems):
    found = problems(models={"x": "y" * 500}, instances="a\nb\nc", server="d\n" * 50)
    assert len(found) == 3
    assert all("\n" not in line and len(line) < 200 for line in found)


def test_a_problem_names_file_and_line_where_ansible_knows_them(problems):
    key = Origin(path="/site/group_vars/llm_hosts.yml", line_num=12).tag("n_ctxx")
    assert problems(defaults={key: 1}) == [
        "llm_model_defaults: n_ctxx is not a setting of llama_cpp.server 0.3.36;"
        " did you mean n_ctx? [/site/group_vars/llm_hosts.yml:12]"
    ]


def test_known_variables_are_those_of_roles_and_group_vars(tmp_path):
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/llm_hosts.yml").write_text("llm_models: []\n")
    for room in ("defaults", "meta"):
        (tmp_path / "roles/one" / room).mkdir(parents=True)
    (tmp_path / "roles/one/defaults/main.yml").write_text("one_a: 1\n")
    (tmp_path / "roles/one/meta/argument_specs.yml").write_text(
        "argument_specs: {main: {options: {one_a: {}, one_b: {}}}}\n"
    )
    assert set(llm_known_variables(str(tmp_path))) >= {
        "llm_models",
        "one_a",
        "one_b",
        "llm_api_key",
    }


def test_no_variable_of_the_project_looks_like_a_misspelled_one(group_vars):
    known = llm_known_variables(str(Path(__file__).resolve().parents[2]))
    assert set(group_vars) <= set(known)
    assert llm_problems([], [], {}, {}, {}, names=known, known=known)[0].startswith("llm_server_version")


def test_whatever_is_written_gives_messages_and_never_a_crash(problems):
    junk = [None, True, 0, -1, 1.5, "", "x", "\n", [], ["x"], [[]], {}, {"x": 1}, {1: {2: None}}]
    keys = ["alias", "file", "url", "sha256", "settings", "name", "port", "gpus", "models", 7]
    for value in junk:
        entry = dict.fromkeys(keys, value)
        settings = {name: value for name in ("n_ctx", "chat_format", "port", "numa", 7, None)}
        for models, instances in ((value, value), ([value], [value]), ([entry] * 2, [entry] * 2)):
            found = problems(models=models, instances=instances, server=value, defaults=settings)
            assert found
            assert all(isinstance(line, str) and "\n" not in line for line in found)
