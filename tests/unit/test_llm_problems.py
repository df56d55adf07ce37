"""Every message about wrong input, word for word."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from llm_problems import Origin, llm_known_variables, llm_problems
from model_files import model_files

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
            f"{M}: zzz is not a key here; valid are alias, file, url, hf, path, controller_path, link,"
            " sha256, side_files, settings",
        ),
        ([model(alias=...)], "llm_models[0]: alias is missing; it must be given"),
        ([model(file=...)], f"{M}: file is missing; it must be given"),
        ([model(url=...)], f"{M}: a source is missing; give one of url, hf, path, controller_path"),
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
            " url; models that share a file need the same source and sha256",
        ),
        (
            [MODEL, model(alias="b", sha256="none")],
            "llm_models[1] (alias b): file g.gguf is also that of llm_models[0], but with another"
            " sha256; models that share a file need the same source and sha256",
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


HUB = {"repository": "owner/name", "revision": "main", "file": "g.gguf"}
SPLIT = "g-00001-of-00003.gguf"
SPLIT_URL = f"https://m.example/{SPLIT}"


def from_(**changes):
    """A good model that comes from somewhere else than its url."""
    return model(url=..., **changes)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            [model(path="/mnt/g.gguf")],
            f"{M}: url and path are each a source, and a file has one; keep one of them",
        ),
        ([from_(hf="owner/name")], f'{M}: hf is "owner/name" (string); it must be a dictionary'
         " (repository, revision, file)"),
        ([from_(hf={})], f"{M}: hf: repository is missing; it must be given"),
        ([from_(hf={**HUB, "branch": "x"})], f"{M}: hf: branch is not a key here;"
         " valid are repository, revision, file"),
        ([from_(hf={**HUB, "repository": "name"})], f'{M}: hf: repository "name" must be OWNER/NAME,'
         " as on the hub's page"),
        ([from_(hf={**HUB, "repository": "https://huggingface.co/o/n"})],
         f'{M}: hf: repository "https://huggingface.co/o/n" must be OWNER/NAME, as on the hub\'s page'),
        ([from_(hf={**HUB, "revision": 1234567})], f"{M}: hf: revision is 1234567 (integer);"
         " it must be a string without spaces around it; write it in quotes"),
        ([from_(hf={**HUB, "revision": "../main"})], f'{M}: hf: revision "../main" must be a commit'
         " (40 hexadecimal digits), a branch or a tag"),
        ([from_(hf={**HUB, "revision": "main?x"})], f'{M}: hf: revision "main?x" must be a commit'
         " (40 hexadecimal digits), a branch or a tag"),
        ([from_(hf={**HUB, "file": "/g.gguf"})], f'{M}: hf: file "/g.gguf" must be a path in the repository,'
         " like directory/file.gguf"),
        ([from_(path="mnt/g.gguf")], f'{M}: path "mnt/g.gguf" must be an absolute path on the host'),
        ([from_(path=3)], f"{M}: path is 3 (integer); it must be a string without spaces around it;"
         " write it in quotes"),
        ([from_(path="/mnt/g.gguf", sha256=...)], f"{M}: sha256 is missing, and only"
         f" https://huggingface.co announces that of its files; {LONG}"),
        ([from_(controller_path="/no/g.gguf")], f"{M}: controller_path /no/g.gguf is not a file on this"
         " machine, which runs Ansible; put it there, or correct controller_path"),
        ([model(link=True)], f"{M}: link needs path, a file on the host; other sources are always copied,"
         " so leave it out"),
        ([from_(path="/mnt/g.gguf", link="yes")], f'{M}: link is "yes" (string); it must be true or false'),
        ([from_(path="/mnt/a,b/g.gguf", link=True)], f'{M}: path "/mnt/a,b/g.gguf" has characters that a'
         " mount option cannot have; rename it, or leave link out"),
        ([model(sha256=[HASH])], f"{M}: sha256 is a list, but the file is not split; write one string"),
        ([model(file=SPLIT, url=SPLIT_URL, sha256=[HASH])], f"{M}: sha256 has 1 entries, but the model is"
         " split into 3 parts; write one for each, in their order"),
        ([model(file=SPLIT, url=SPLIT_URL)], f"{M}: sha256 is one string, but the model is split into 3"
         " parts; write a list with one for each, or `sha256: none` to waive the check"),
        ([model(file=SPLIT, url=SPLIT_URL, sha256=[HASH, "x", "none"])], f"{M}: sha256 x is not 64"
         f" hexadecimal digits (it has 1 characters); {LONG.replace('g.gguf', SPLIT)}"),
        ([model(file=SPLIT, sha256="none")], f"{M}: file {SPLIT} is split, but url lacks"
         " -00001-of-00003.gguf, from which those of the other parts follow; correct url or file"),
        ([model(file=SPLIT, url="https://m.example/g-00001-of-00004.gguf", sha256="none")],
         f"{M}: file {SPLIT} is split, but url lacks -00001-of-00003.gguf,"
         " from which those of the other parts follow; correct url or file"),
        ([from_(file=SPLIT, hf=HUB, sha256="none")], f"{M}: file {SPLIT} is split, but hf.file lacks"
         " -00001-of-00003.gguf, from which those of the other parts follow; correct hf.file or file"),
        ([model(url=SPLIT_URL)], f"{M}: url is part of a split model, but file g.gguf lacks"
         " -00001-of-00003.gguf, by which the server finds the other parts; correct file"),
        ([model(file="g-00002-of-00003.gguf", url="https://m.example/g-00002-of-00003.gguf", sha256="none")],
         f"{M}: file g-00002-of-00003.gguf is a later part of a split model; name the first one, {SPLIT}"),
    ],
)  # fmt: skip
def test_each_problem_of_a_source_has_its_message(problems, models, message):
    assert problems(models=models) == [message]


@pytest.mark.parametrize(
    "source",
    [
        {"hf": {"repository": "owner/name"}, "sha256": ...},
        {"hf": {**HUB, "revision": "refs/pr/1", "file": "a directory/g.gguf"}, "sha256": ...},
        {"hf": {**HUB, "revision": "0" * 40}},
        {"path": "/mnt/models/g.gguf"},
        {"path": "/mnt/my models/g.gguf", "link": False, "sha256": "none"},
        {"path": "/mnt/models/g.gguf", "link": True},
    ],
)
def test_every_source_may_be_given(problems, source):
    assert problems(models=[from_(**source)]) == []


@pytest.mark.parametrize("sha256", [[HASH, HASH.upper(), "none"], "none"])
def test_a_split_model_has_a_sha256_for_each_part_or_waives_them(problems, sha256):
    assert problems(models=[model(file=SPLIT, url=SPLIT_URL, sha256=sha256)]) == []
    assert problems(models=[from_(file=SPLIT, hf={"repository": "o/n"}, sha256=...)]) == []


def test_each_part_of_a_model_is_on_the_controller(problems, tmp_path, monkeypatch):
    for part in (1, 2):
        (tmp_path / f"g-0000{part}-of-00003.gguf").touch()
    monkeypatch.chdir(tmp_path)
    relative = [from_(file=SPLIT, controller_path=SPLIT, sha256="none")]
    assert problems(models=relative) == [
        f"{M}: controller_path {tmp_path}/g-00003-of-00003.gguf is not a file on this machine, which runs"
        " Ansible; put it there, or correct controller_path"
    ]
    (tmp_path / "g-00003-of-00003.gguf").touch()
    assert problems(models=relative) == []


SIDE = {"setting": "clip_model_path", "file": "mmproj.gguf", "path": "/mnt/mmproj.gguf", "sha256": HASH}
S = f"{M} side_files[0]"


def side(**changes):
    """A good model with a side file that is changed; ... takes a key away."""
    changed = {key: value for key, value in {**SIDE, **changes}.items() if value is not ...}
    return model(side_files=[changed])


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([model(side_files={"file": "x.gguf"})], f"{M}: side_files is {{'file': 'x.gguf'}} (dictionary); it"
         " must be a list of dictionaries (setting, file, url, …)"),
        ([model(side_files=["mmproj.gguf"])], f"{S}: must be a dictionary (setting, file, url, …), not"
         ' "mmproj.gguf" (string)'),
        ([side(setting=...)], f"{S}: setting is missing; it must be given"),
        ([side(alias="x")], f"{S}: alias is not a key here; valid are setting, file, url, hf, path,"
         " controller_path, link, sha256"),
        ([side(setting="clip_path")], f"{S}: setting clip_path is no setting of llama_cpp.server 0.3.36 that"
         " takes a path; did you mean clip_model_path or lora_path?"),
        ([side(setting="n_ctx")], f"{S}: setting n_ctx is no setting of llama_cpp.server 0.3.36 that takes a"
         " path; valid are rpc_servers, lora_base, lora_path, chat_format, clip_model_path,"
         " hf_tokenizer_config_path, hf_pretrained_model_name_or_path, hf_model_repo_id, draft_model"),
        ([side(setting="model")], f"{S}: setting model must not be set: it follows from the model's file"),
        ([side(file="mmproj.bin")], f"{S}: file mmproj.bin must end in .gguf; the server reads no other"
         " format"),
        ([side(path=...)], f"{S}: a source is missing; give one of url, hf, path, controller_path"),
        ([side(sha256=...)], f"{S}: sha256 is missing, and only https://huggingface.co announces that of its"
         f" files; {LONG.replace('g.gguf', 'mmproj.gguf')}"),
        ([{**side(), "settings": {"clip_model_path": "/x"}}], f"{S}: setting clip_model_path is already in"
         " settings of this model; give it once"),
        ([model(side_files=[SIDE, SIDE])], f"{M} side_files[1]: setting clip_model_path is already in"
         " side_files[0] of this model; give it once"),
        ([side(file="g.gguf", sha256="none")], f"{S}: file g.gguf is also that of llm_models[0], but with"
         " another url and another path and another sha256; models that share a file need the same source and"
         " sha256"),
    ],
)  # fmt: skip
def test_each_problem_of_a_side_file_has_its_message(problems, models, message):
    assert problems(models=models) == [message]


def test_models_may_share_a_side_file(problems):
    assert problems(models=[side(), {**side(), "alias": "b"}]) == []


def test_a_later_part_of_a_split_model_counts_as_its_file(problems):
    shared = model(file=SPLIT, url=SPLIT_URL, sha256=[HASH, HASH, "b" * 64])
    other = {**shared, "alias": "b", "sha256": [HASH, HASH, "c" * 64]}
    assert problems(models=[shared, {**shared, "alias": "b"}]) == []
    assert problems(models=[shared, other]) == [
        "llm_models[1] (alias b): file g-00003-of-00003.gguf is also that of llm_models[0], but with another"
        " sha256; models that share a file need the same source and sha256"
    ]


def test_what_the_lock_has_needs_no_sha256(problems):
    locked = {"sha256": HASH, "size": 1}
    lock = {MODEL["url"]: locked, **{SPLIT_URL.replace("00001", f"0000{n}"): locked for n in (1, 2)}}
    assert problems(models=[model(sha256=...)], lock=lock) == []
    split = [model(file=SPLIT, url=SPLIT_URL, sha256=...)]
    assert len(problems(models=split, lock=lock)) == 1
    lock[SPLIT_URL.replace("00001", "00003")] = locked
    assert problems(models=split, lock=lock) == []


@pytest.mark.parametrize(
    "source",
    [
        {"url": "https://huggingface.co/o/n/resolve/main/g.gguf?download=true"},
        {"hf": {"repository": "o/n"}},
        {"hf": {"repository": "o/n", "revision": "refs/pr/1", "file": "a b/ü.gguf"}},
        {"hf": {"repository": "o/n", "file": f"x/{SPLIT}"}, "file": SPLIT},
    ],
)
def test_another_sha256_than_in_the_lock_is_named_with_both(problems, source):
    entry = {"alias": "gemma3", "file": "g.gguf", **source}
    *_, last = model_files([entry])
    lock = {last["url"]: {"sha256": "b" * 64, "size": 1}}
    count = 3 if source.get("file") else 1
    assert problems(models=[entry], lock=lock) == []
    for sha256 in (HASH, "none", "b" * 64):
        found = problems(models=[{**entry, "sha256": [sha256] * count if count > 1 else sha256}], lock=lock)
        assert found == [
            f"{M}: sha256 {HASH} is not that of llm_models_lock, which has {'b' * 64} for {last['url']};"
            " correct it, or leave it to the lock"
        ] * (sha256 == HASH)


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        ([], "llm_models_lock: must be a dictionary (url: {sha256, size}), not [] (list); run `make lock`,"
         " which writes it"),
        ({"https://a:b@m.example/g": HASH}, f'llm_models_lock: https://m.example/g has "{HASH[:56]}…'
         " (string); it must have sha256 (64 hexadecimal digits) and size (bytes); run `make lock`,"
         " which writes it"),
        ({"u": {"sha256": HASH}}, f"llm_models_lock: u has {{'sha256': '{HASH[:45]}… (dictionary); it"
         " must have sha256 (64 hexadecimal digits) and size (bytes); run `make lock`, which writes it"),
    ],
)  # fmt: skip
def test_each_problem_of_the_lock_has_its_message(problems, lock, message):
    assert problems(lock=lock) == [message]


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
    keys = ["alias", "file", "url", "hf", "path", "controller_path", "link", "sha256", "side_files"]
    keys += ["setting", "settings", "repository", "name", "port", "gpus", "models", 7]
    for value in junk:
        entry = dict.fromkeys(keys, value)
        settings = {name: value for name in ("n_ctx", "chat_format", "port", "numa", 7, None)}
        nested = {**entry, "side_files": [entry, value], "hf": entry}
        for models, instances in ((value, value), ([value], [value]), ([entry, nested], [entry] * 2)):
            found = problems(
                models=models, instances=instances, server=value, defaults=settings, lock={"x": value}
            )
            assert found
            assert all(isinstance(line, str) and "\n" not in line for line in found)


DIGEST = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("probe", "messages"),
    [
        ("all", []),
        ([], []),
        (["gemma3"], []),
        (
            ["gemma", "other"],
            [
                'llamacpp_server_probe: "gemma" is served by no instance; did you mean gemma3?',
                'llamacpp_server_probe: "other" is served by no instance; valid are gemma3, two',
            ],
        ),
        (["spare"], ['llamacpp_server_probe: "spare" is served by no instance; valid are gemma3, two']),
        ([3], ["llamacpp_server_probe: 3 is served by no instance; valid are gemma3, two"]),
        (
            "gemma3",
            [
                'llamacpp_server_probe: is "gemma3" (string); it must be all, or a list of aliases of'
                " llm_models"
            ],
        ),
    ],
)
def test_models_that_must_answer(problems, probe, messages):
    models = [MODEL, model(alias="two"), model(alias="spare")]
    instances = [instance(models=["gemma3"]), instance(name="second", port=20081, models=["two"])]
    assert problems(models=models, instances=instances, probe=probe) == messages


def test_models_that_must_answer_are_all_those_of_an_instance_that_names_none(problems):
    assert problems(probe=["gemma3"]) == []
    assert len(problems(probe=["two"])) == 1


def test_wrong_lists_have_no_second_line_about_the_models_that_must_answer(problems):
    assert len(problems(models=[], probe=["two"])) == 1
    assert len(problems(instances="x", probe=["two"])) == 1


def image_from(source, **changes):
    return {"source": source, "archive": "", "registry_ref": "", "id": ""} | changes


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            image_from("registri"),
            'llamacpp_image_source: "registri" is not a source of the image; did you mean registry?',
        ),
        (
            image_from("pull"),
            'llamacpp_image_source: "pull" is not a source of the image; valid are build, archive, registry',
        ),
        (
            image_from("archive"),
            "llamacpp_image_archive: is empty, but llamacpp_image_source is archive; give the path here of an"
            " archive that image.yml has written",
        ),
        (
            image_from("archive", archive="/no/such.tar"),
            "llamacpp_image_archive: /no/such.tar is not a file on this machine, but llamacpp_image_source"
            " is archive; give the path here of an archive that image.yml has written",
        ),
        (
            image_from("registry"),
            "llamacpp_image_registry_ref: is empty, but llamacpp_image_source is registry; write"
            " REGISTRY/NAME@sha256:DIGEST, or REGISTRY/NAME:TAG",
        ),
        (
            image_from("registry", registry_ref="registry.example.com:5000/llm/llamacpp"),
            'llamacpp_image_registry_ref: "registry.example.com:5000/llm/llamacpp" names no image, but'
            " llamacpp_image_source is registry; write REGISTRY/NAME@sha256:DIGEST, or REGISTRY/NAME:TAG",
        ),
        (
            image_from("registry", registry_ref="https://registry.example.com/llamacpp:1"),
            'llamacpp_image_registry_ref: "https://registry.example.com/llamacpp:1" names no image, but'
            " llamacpp_image_source is registry; write REGISTRY/NAME@sha256:DIGEST, or REGISTRY/NAME:TAG",
        ),
        (
            image_from("registry", registry_ref="r.example/llamacpp:1", id="b1946ac92492"),
            'llamacpp_image_id: "b1946ac92492" is not sha256: and 64 hexadecimal digits; write'
            " the id that `docker image ls --no-trunc` shows, or leave it out",
        ),
    ],
)
def test_where_the_image_comes_from(problems, image, message):
    assert problems(image=image) == [message]


@pytest.mark.parametrize(
    "name",
    [
        "llamacpp:1",
        "llm/llamacpp:0.3.36-cpu",
        "localhost:5000/llamacpp:1",
        f"registry.example.com/a/b-c/llamacpp@{DIGEST}",
        f"registry.example.com:443/llm/llamacpp:1@{DIGEST}",
    ],
)
def test_names_of_images_in_registries(problems, name):
    assert problems(image=image_from("registry", registry_ref=name, id=DIGEST)) == []


def test_only_the_source_that_is_used_is_looked_at(problems, tmp_path):
    (tmp_path / "image.tar").touch()
    assert problems(image=image_from("archive", archive=str(tmp_path / "image.tar"), registry_ref="?")) == []
    assert problems(image=image_from("build", archive="/no/such.tar", registry_ref="?", id="?")) == []


def test_sources_that_may_connect_can_be_addresses_and_networks(problems):
    sources = ["192.0.2.10", "10.0.0.0/8", "fd00:1::/64", "2001:db8::1", "0.0.0.0/0", "192.0.2.10/32"]
    assert problems(allowed_sources=sources) == []
    assert problems(allowed_sources=[]) == []


WRITE = "write an address (192.0.2.10) or a network (192.0.2.0/24, fd00:1::/64)"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "192.0.2.10/24",
            '"192.0.2.10/24" is an address inside a network; write 192.0.2.0/24 for all of it, or 192.0.2.10'
            " for this one alone",
        ),
        (
            "fd00:1::7/64",
            '"fd00:1::7/64" is an address inside a network; write fd00:1::/64 for all of it, or fd00:1::7 for'
            " this one alone",
        ),
        (
            "gw.example.com",
            f'"gw.example.com" is a name, not an address, and names are not looked up; {WRITE}',
        ),
        ("10.0.0.1-10.0.0.9", f'"10.0.0.1-10.0.0.9" is neither an address nor a network; {WRITE}'),
        ("10.0.0.0/33", f'"10.0.0.0/33" is neither an address nor a network; {WRITE}'),
        (
            "10.0.0.1 # gateway",
            f'"10.0.0.1 # gateway" is a name, not an address, and names are not looked up; {WRITE}',
        ),
        ("", f'"" is neither an address nor a network; {WRITE}'),
        (10.1, f"is 10.1 (number); {WRITE}, in quotes"),
        (None, f"is null (nothing was written); {WRITE}, in quotes"),
        ("fe80::1%eth0", '"fe80::1%eth0" names an interface; write the address without %'),
        ("::ffff:192.0.2.1", '"::ffff:192.0.2.1" is an IPv4 address in the form of IPv6; write 192.0.2.1'),
        ("0.0.0.0", '"0.0.0.0" is the address of nobody; llm_allowed_sources: [] lets everyone connect'),
    ],
)
def test_a_source_that_nftables_would_not_take_is_refused(problems, source, told):
    assert problems(allowed_sources=["10.0.0.0/8", source]) == [f"llm_allowed_sources[1]: {told}"]


def test_sources_are_a_list(problems):
    assert problems(allowed_sources="10.0.0.1") == [
        'llm_allowed_sources: must be a list of addresses and networks, not "10.0.0.1" (string);'
        " [] lets everyone connect"
    ]


def test_an_instance_cannot_have_the_name_of_the_firewall(problems):
    (found,) = problems(instances=[instance(name="llamacpp-firewall")])
    assert "llamacpp-firewall.service" in found


def batched(**changes):
    """A good instance with engine batch, with changes."""
    return instance(models=["gemma3"], engine="batch", **changes)


B = "llm_instances[0] (name llamacpp)"


def test_a_good_batching_instance_has_no_problem(problems):
    assert problems(instances=[batched()]) == []
    assert problems(instances=[batched(parallel=4, settings={"threads": 2, "flash_attn": True})]) == []
    assert problems(instances=[instance(engine="server")]) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"engine": "vllm"},
            'engine "vllm" is not an engine; valid are server, batch',
        ),
        (
            {"engine": "server", "parallel": 2},
            "parallel is only for engine: batch; set that, or take parallel out",
        ),
        (
            {"parallel": 0},
            "parallel is 0 (integer); it must be an integer from 1 to 256 (requests at once)",
        ),
        (
            {"settings": {"n_seq_max": 2}},
            "settings.n_seq_max must not be set: set the instance's parallel",
        ),
        (
            {"settings": {"n_threads": 2}},
            "settings.n_threads is not a setting of the batching server 0.3.36; did you mean threads or"
            " threads_batch?",
        ),
        (
            {"settings": {"threads": "two"}},
            'settings.threads is "two" (string); it must be null or an integer',
        ),
    ],
)
def test_what_is_wrong_with_a_batching_instance_is_named(problems, wrong, message):
    found = problems(instances=[batched() | wrong])
    assert found == [f"{B}: {message}"]


def test_a_batching_instance_serves_one_model(problems):
    other = model(alias="other", file="o.gguf")
    assert problems([MODEL, other], [instance(engine="batch")]) == [
        f"{B}: engine batch serves one model, but this instance has gemma3, other; name one in its models,"
        " and give each other one an instance of its own"
    ]


def test_a_chat_format_needs_a_template_in_its_place(problems):
    formatted = model(settings={"chat_format": "chatml"})
    assert problems([formatted], [batched()]) == [
        f"{B}: engine batch does not know chat_format, which model gemma3 has in its settings; give the"
        " instance settings: {chat_template: !unsafe …} (Jinja; null: the one in the GGUF file)"
    ]
    assert problems([formatted], [batched(settings={"chat_template": None})]) == []
    assert problems([formatted], [batched(settings={"chat_template": "{{ messages[0].content }}"})]) == []


def test_what_the_batching_server_would_leave_aside_is_refused(problems):
    for given, name in (
        ({"settings": {"lora_path": "/x.gguf"}}, "lora_path"),
        ({"settings": {"n_ctx": 0}}, "n_ctx"),
    ):
        (line,) = problems([model(**given)], [batched()])
        assert line.startswith(B) and name in line
    side = {"setting": "lora_path", "file": "l.gguf", "url": "https://m.example/l.gguf", "sha256": HASH}
    (line,) = problems([model(side_files=[side])], [batched()])
    assert "side_files" in line


def test_layers_of_a_batching_instance_may_stand_in_its_settings(problems):
    (line,) = problems(instances=[batched(gpus=[0])])
    assert "n_gpu_layers" in line
    assert problems(instances=[batched(gpus=[0], settings=ON_GPU)]) == []
