"""docs/settings.md: all of the pinned engine's settings stand there, and a page that is behind is found."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import PROJECT
from llm_problems import RESERVED_MODEL_SETTINGS, RESERVED_SERVER_SETTINGS, llm_problems

SCRIPT = "scripts/settings-doc"
PAGE = "docs/settings.md"
GROUP_VARS = "group_vars/llm_hosts.yml"
KINDS = {"server_settings": "Of the server", "model_settings": "Of each model"}
RESERVED = {"server_settings": RESERVED_SERVER_SETTINGS, "model_settings": RESERVED_MODEL_SETTINGS}


@pytest.fixture(scope="module")
def page():
    return (PROJECT / PAGE).read_text(encoding="utf-8")


def section(page, title):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(page, kind):
    """The cells of each row of a table, without its head."""
    lines = [line for line in section(page, KINDS[kind]).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.fixture
def project(tmp_path, schema):
    """A copy of what the script reads and writes."""
    settings = f"files/image/settings-{schema['version']}.json"
    for name in (
        SCRIPT,
        PAGE,
        GROUP_VARS,
        settings,
        "plugins/filter/llm_problems.py",
        "plugins/filter/llm_config.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def run(project, *arguments):
    return subprocess.run(
        [sys.executable, project / SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


def write_changed(project, schema, change):
    """Write the settings of the project, changed."""
    described = json.loads(json.dumps(schema))
    change(described)
    path = project / f"files/image/settings-{schema['version']}.json"
    path.write_text(json.dumps(described), encoding="utf-8")


def test_the_page_is_what_the_script_makes(project, page):
    assert run(project, "--check").returncode == 0
    (project / PAGE).unlink()
    assert run(project).returncode == 0
    assert (project / PAGE).read_text(encoding="utf-8") == page


def test_the_pinned_version_is_the_same_everywhere(schema, group_vars, page):
    image = yaml.safe_load((PROJECT / "roles/llamacpp_image/defaults/main.yml").read_text(encoding="utf-8"))
    assert schema["version"] == group_vars["llm_server_version"] == image["llamacpp_image_version"]
    assert f"llama-cpp-python {schema['version']} itself" in page


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_one_row_of_five_cells(schema, page, kind):
    table = rows(page, kind)
    assert [row[0] for row in table] == [f"`{name}`" for name in schema[kind]["properties"]]
    assert {len(row) for row in table} == {5}


def test_the_page_says_how_many_settings_there_are(schema, page):
    counts = [len(schema[kind]["properties"]) for kind in KINDS]
    assert "{} settings are of the server and {} of each model.".format(*counts) in page


@pytest.mark.parametrize(
    "name, words",
    [
        ("n_gpu_layers", "integer, at least -1"),
        ("n_threads", "integer, at least 1, or `-1`"),
        ("tensor_split", "list of numbers or null"),
        ("chat_template_kwargs", "dictionary or null"),
        ("cache_type", '`"ram"` or `"disk"`'),
        ("numa", "boolean or integer"),
    ],
)
def test_a_type_is_told_in_words(page, name, words):
    assert {row[0]: row[1] for row in rows(page, "model_settings")}[f"`{name}`"] == words


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_and_descriptions_are_the_engines(schema, page, kind):
    for _name, _type, default, _deployed, about in rows(page, kind):
        entry = schema[kind]["properties"][_name.strip("`")]
        if "default" in entry:
            assert json.loads(default.strip("`")) == entry["default"]
        else:
            assert default in ("required", "depends on the machine")
        if "description" in entry:
            assert entry["description"].rstrip(".").lower() in about.lower()


@pytest.mark.parametrize(
    "kind, variable", [("server_settings", "llm_server_settings"), ("model_settings", "llm_model_defaults")]
)
def test_what_the_project_sets_is_shown_with_its_reason(group_vars, page, kind, variable):
    deployed = {
        row[0].strip("`"): json.loads(row[3].strip("`"))
        for row in rows(page, kind)
        if row[3] not in ("", "set by the project")
    }
    assert deployed == group_vars[variable]
    text = (PROJECT / GROUP_VARS).read_text(encoding="utf-8")
    about = {row[0].strip("`"): row[4].replace("`", "").lower() for row in rows(page, kind)}
    for name in deployed:
        assert re.search(rf"^  {name}: .*# (.*)$", text, re.MULTILINE)[1].lower() in about[name]


@pytest.mark.parametrize("kind", KINDS)
def test_what_must_not_be_set_is_there_with_its_reason(schema, page, kind):
    by_project = {row[0].strip("`"): row[4] for row in rows(page, kind) if row[3] == "set by the project"}
    assert by_project.keys() == RESERVED[kind].keys() & schema[kind]["properties"].keys()
    for name, reason in RESERVED[kind].items():
        where = by_project.get(name) or section(page, KINDS[kind])
        assert f": {reason}." in where
        assert f"`{name}`" in section(page, KINDS[kind])


def test_every_chat_format_is_there(schema, page):
    text = section(page, "Chat formats")
    names = text.split("names:\n\n")[1].split("\n\n")[0]
    assert re.findall(r"`(.+?)`", names) == schema["chat_formats"]
    assert f"one of these {len(schema['chat_formats'])} names" in text


def test_the_example_is_valid_and_loses_nothing_that_is_shipped(schema, group_vars, page):
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    model = {"file": "a.gguf", "path": "/mnt/a.gguf", "sha256": "none", **example["llm_models"][0]}
    server, defaults = example["llm_server_settings"], example["llm_model_defaults"]
    instances = [{"name": "llamacpp", "port": 20080}]
    assert llm_problems([model], instances, server, defaults, schema) == []
    assert server.items() > group_vars["llm_server_settings"].items()
    assert defaults.items() > group_vars["llm_model_defaults"].items()


def test_every_note_is_of_a_setting_that_the_engine_has(schema, project):
    code = "import runpy, sys; print(*runpy.run_path(sys.argv[1])['NOTES'])"
    names = subprocess.run(
        [sys.executable, "-c", code, project / SCRIPT], capture_output=True, text=True, check=True
    ).stdout.split()
    assert names
    assert set(names) <= schema["model_settings"]["properties"].keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described["server_settings"]["properties"].update(new={"type": "string"}),
        lambda described: described["model_settings"]["properties"].update(new={"type": "string"}),
        lambda described: described["model_settings"]["properties"].pop("n_ctx"),
        lambda described: described["model_settings"]["properties"]["n_ctx"].update(default=4096),
        lambda described: described["chat_formats"].append("new"),
    ],
    ids=["server setting", "model setting", "setting gone", "default", "chat format"],
)
def test_check_fails_when_the_engine_has_changed(project, schema, page, change):
    write_changed(project, schema, change)
    result = run(project, "--check")
    assert result.returncode == 1
    assert result.stderr == (
        f"docs/settings.md is not that of llama-cpp-python {schema['version']}: run scripts/settings-doc\n"
    )
    assert (project / PAGE).read_text(encoding="utf-8") == page
    assert run(project).returncode == 0
    assert run(project, "--check").returncode == 0


def test_check_fails_when_there_is_no_page(project):
    (project / PAGE).unlink()
    assert run(project, "--check").returncode == 1
    assert not (project / PAGE).exists()


def test_a_version_without_settings_is_named(project, schema):
    path = project / GROUP_VARS
    text = path.read_text(encoding="utf-8").replace(f'"{schema["version"]}"', '"9.9.9"')
    path.write_text(text, encoding="utf-8")
    result = run(project)
    assert result.returncode == 1
    assert result.stderr == "files/image/settings-9.9.9.json is missing: run scripts/lock-image 9.9.9 IMAGE\n"


def test_pipes_and_line_breaks_do_not_break_the_table(project, schema):
    entry = {"type": "string", "default": "a|b", "description": "either a|b,\n  or c"}
    write_changed(
        project, schema, lambda described: described["server_settings"]["properties"].update(new=entry)
    )
    assert run(project).returncode == 0
    table = rows((project / PAGE).read_text(encoding="utf-8"), "server_settings")
    assert table[-1] == ["`new`", "string", r'`"a\|b"`', "", r"Either a\|b, or c."]


def test_the_links_of_the_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page):
        assert (PROJECT / PAGE).parent.joinpath(target).exists(), target
