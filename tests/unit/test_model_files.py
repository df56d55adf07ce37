"""The files behind the catalogue: every kind of source, parts, side files, the lock."""

from __future__ import annotations

import json
import os

import pytest
from llm_problems import Origin
from model_files import link_directories, model_files, unpinned_models

HASH = "a" * 64
HUB = "https://huggingface.co"


def model(file="m.gguf", **keys):
    return {"alias": "m", "file": file, **keys}


def column(key, *models, **arguments):
    return [entry[key] for entry in model_files(models, **arguments)]


def test_a_model_is_one_file_with_everything_that_is_known_of_it():
    assert model_files([model(url="https://m.example/x.gguf", sha256=HASH.upper(), settings={})]) == [
        {
            "file": "m.gguf",
            "part_of": "m.gguf",
            "alias": "m",
            "where": "llm_models[0] (alias m)",
            "url": "https://m.example/x.gguf",
            "link": False,
            "sha256": HASH,
            "size": 0,
        }
    ]


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ({"url": "http://m.example/a%20b.gguf?x=1"}, "http://m.example/a%20b.gguf?x=1"),
        ({"hf": {"repository": "Own/na.me-GGUF"}}, f"{HUB}/Own/na.me-GGUF/resolve/main/m.gguf"),
        (
            {"hf": {"repository": "o/n", "revision": "refs/pr/1", "file": "dir/a b#ü.gguf"}},
            f"{HUB}/o/n/resolve/refs%2Fpr%2F1/dir/a%20b%23%C3%BC.gguf",
        ),
        ({"path": "/mnt/my models/50%.gguf"}, "file:///mnt/my%20models/50%25.gguf"),
        ({"controller_path": "/srv/a?b.gguf"}, "controller:///srv/a%3Fb.gguf"),
        ({"controller_path": "models/../x.gguf"}, f"controller://{os.getcwd()}/x.gguf"),
    ],
)
def test_every_source_is_a_url(source, url):
    assert column("url", model(**source)) == [url]


def test_the_hub_may_have_another_address():
    hub = model(hf={"repository": "o/n"})
    assert column("url", hub, hub_url="https://hub.example/x/") == [
        "https://hub.example/x/o/n/resolve/main/m.gguf"
    ]


@pytest.mark.parametrize(
    ("source", "second"),
    [
        (
            {"url": "https://m.example/x-00001-of-00003.gguf?a=1"},
            "https://m.example/x-00002-of-00003.gguf?a=1",
        ),
        ({"hf": {"repository": "o/n"}}, f"{HUB}/o/n/resolve/main/m-00002-of-00003.gguf"),
        (
            {"hf": {"repository": "o/n", "file": "q8/x-00001-of-00003.gguf"}},
            f"{HUB}/o/n/resolve/main/q8/x-00002-of-00003.gguf",
        ),
        ({"path": "/mnt/x-00001-of-00003.gguf"}, "file:///mnt/x-00002-of-00003.gguf"),
        ({"controller_path": "/srv/x-00001-of-00003.gguf"}, "controller:///srv/x-00002-of-00003.gguf"),
    ],
)
def test_a_split_model_is_all_of_its_parts_from_every_source(source, second):
    split = model("m-00001-of-00003.gguf", sha256=[HASH, "none", "B" * 64], **source)
    assert column("file", split) == [f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert column("url", split)[1] == second
    assert len(set(column("url", split))) == 3
    assert column("part_of", split) == ["m-00001-of-00003.gguf"] * 3
    assert column("sha256", split) == [HASH, "none", "b" * 64]
    assert column("sha256", {**split, "sha256": "none"}) == ["none"] * 3


@pytest.mark.parametrize("count", ["00001", "00000"])
def test_a_single_part_is_one_file(count):
    name = f"m-00001-of-{count}.gguf"
    assert column("file", model(name, url=f"https://m.example/{name}", sha256=HASH)) == [name]


def test_side_files_follow_their_model_and_say_where_they_are():
    side = {"setting": "clip_model_path", "file": "mmproj.gguf", "path": "/mnt/p.gguf", "link": True}
    files = model_files([model(url="u"), model("n.gguf", url="v", side_files=[side])])
    assert [entry["file"] for entry in files] == ["m.gguf", "n.gguf", "mmproj.gguf"]
    assert files[2]["where"] == "llm_models[1] (alias m) side_files[0]"
    assert files[2]["part_of"] == "mmproj.gguf"
    assert files[2]["link"] is True


def test_what_the_catalogue_leaves_out_comes_from_the_lock():
    lock = {"u": {"sha256": HASH.upper(), "size": 7}}
    assert column("sha256", model(url="u"), lock=lock) == [HASH]
    assert column("size", model(url="u"), lock=lock) == [7]
    assert column("sha256", model(url="u", sha256="none"), lock=lock) == ["none"]
    assert column("sha256", model(url="v"), lock=lock) == [""]
    assert column("size", model(url="v"), lock=lock) == [0]


def test_a_file_that_two_models_share_is_listed_once_as_that_of_the_first():
    assert column("alias", model(url="u"), {**model(url="u"), "alias": "second"}) == ["m"]


def test_values_that_know_their_line_in_a_file_stay_usable():
    tag = Origin(path="/site/group_vars/llm_hosts.yml", line_num=12).tag
    written = {"alias": tag("m"), "file": tag("m-00001-of-00002.gguf"), "sha256": tag("none")}
    plain = {"alias": "m", "file": "m-00001-of-00002.gguf", "sha256": "none"}
    for source in (
        {"url": "https://m.example/m-00001-of-00002.gguf"},
        {"path": "/mnt/m-00001-of-00002.gguf"},
        {"controller_path": "m-00001-of-00002.gguf"},
        {"hf": {"repository": "o/n", "revision": "main"}},
    ):
        tagged = {
            key: {k: tag(v) for k, v in value.items()} if isinstance(value, dict) else tag(value)
            for key, value in source.items()
        }
        assert json.dumps(model_files([written | tagged])) == json.dumps(model_files([plain | source]))


def test_directories_of_linked_files_are_listed_once():
    files = model_files(
        [
            model("a.gguf", path="/mnt/b b/a.gguf", link=True),
            model("b.gguf", path="/mnt/b b/b.gguf", link=True),
            model("c.gguf", path="/mnt/a/c.gguf", link=True),
            model("d.gguf", path="/mnt/copied/d.gguf"),
        ]
    )
    assert link_directories(files) == ["/mnt/a", "/mnt/b b"]


def test_models_that_follow_a_branch_are_one_line():
    hub = {"repository": "o/n"}
    split = model("s-00001-of-00002.gguf", hf={**hub, "revision": "refs/pr/1"})
    assert unpinned_models(model_files([model(hf=hub)])) == (
        "llm_models[0] (alias m) follows the branch main: what it holds can change from day to day;"
        " `make lock` writes down its sha256, or pin a commit"
    )
    several = model_files([split, model(url=f"{HUB}/o/n/resolve/main/m.gguf"), model("x.gguf", hf=hub)])
    assert unpinned_models(several) == (
        "llm_models[0] (alias m) and llm_models[1] (alias m) and llm_models[2] (alias m) follow the branch"
        " main and refs/pr/1: what it holds can change from day to day;"
        " `make lock` writes down its sha256, or pin a commit"
    )


@pytest.mark.parametrize(
    "pinned",
    [
        model(hf={"repository": "o/n", "revision": "0123456789abcdef" * 2 + "01234567"}),
        model(hf={"repository": "o/n"}, sha256=HASH),
        model(hf={"repository": "o/n"}, sha256="none"),
        model("l.gguf", hf={"repository": "o/n"}),
        model(url="https://m.example/o/n/resolve/main/m.gguf"),
        model(path="/o/n/resolve/main/m.gguf"),
    ],
)
def test_a_commit_a_sha256_the_lock_or_another_source_is_no_branch(pinned):
    lock = {f"{HUB}/o/n/resolve/main/l.gguf": {"sha256": HASH, "size": 1}}
    assert unpinned_models(model_files([pinned], lock=lock)) == ""
