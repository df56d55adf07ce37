"""Filters ``llm_problems`` and ``llm_known_variables``: what is wrong with the operator's input.

Every problem is one line: which variable, what is wrong, what to do, and, where Ansible knows it,
file and line.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

try:  # where a value was written; ansible-core 2.19 and later
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

HUB_URL = "https://huggingface.co"
BACKENDS = ("auto", "cpu", "cuda")
IMAGE_SOURCES = ("build", "archive", "registry")

SOURCES = ("url", "hf", "path", "controller_path")
FILE_KEYS = ("file", *SOURCES, "link", "sha256")
MODEL_KEYS = ("alias", *FILE_KEYS, "side_files", "settings")
SIDE_FILE_KEYS = ("setting", *FILE_KEYS)
HUB_KEYS = ("repository", "revision", "file")
INSTANCE_KEYS = ("name", "port", "gpus", "models", "engine", "parallel", "settings")
ENGINES = ("server", "batch")
REQUIRED_MODEL_KEYS = ("alias", "file")
REQUIRED_SIDE_FILE_KEYS = ("setting", "file")
REQUIRED_INSTANCE_KEYS = ("name", "port")

# What the project itself puts into config.json, and where the operator sets it instead.
RESERVED_MODEL_SETTINGS = {
    "model": "it follows from the model's file",
    "model_alias": "it follows from the model's alias",
}
RESERVED_SERVER_SETTINGS = {
    "host": "the server always listens on all addresses of its container",
    "port": "set the instance's port in llm_instances",
    "models": "set them in llm_models and llm_instances",
    "api_key": "set llm_api_key from the vault instead, so that the key never stands in config.json",
}
RESERVED_BATCH_SETTINGS = {
    "path": "it follows from the model's file",
    "alias": "it follows from the model's alias",
    "n_seq_max": "set the instance's parallel",
    "from_pretrained": "the server has no network; name the file in llm_models",
    "draft_model_from_pretrained": "the server has no network; name a file with draft_model_path",
    "embedding": "an instance that only embeds cannot be probed; serve embeddings with engine: server",
}
# What a model's settings say of its answers, and the batching server does not have or calls otherwise.
ONLY_OF_SERVER = (
    *("chat_format", "chat_template_kwargs", "clip_model_path", "lora_path", "lora_base"),
    *("hf_tokenizer_config_path", "hf_pretrained_model_name_or_path", "kv_overrides"),
)
SERVERS = {"batch_settings": "the batching server"}
PARALLEL = (1, 256)  # LLAMA_MAX_SEQ of llama.cpp
# The engine turns -1 into the number of CPUs before it checks the minimum (set_dynamic_defaults of
# ModelSettings).
ALSO_VALID = {"n_threads": (-1,), "n_threads_batch": (-1,)}

# Units that hosts of this kind have already; an instance of that name would overwrite one.
FOREIGN_UNITS = ("docker", "containerd", "dbus", "ssh", "sshd", "cron", "networking", "llamacpp-firewall")
# What is valid as a container name, a host name and a unit name at once.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,62}")
GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# How llama.cpp names the parts of a split model; the other names follow from that of the first.
PART = re.compile(r"-(\d{5})-of-(?!00000)(\d{5})(?=\.gguf)")
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
REVISION = re.compile(r"[\w-]([\w./-]*[\w-])?", re.ASCII)
# REGISTRY/NAME:TAG or REGISTRY/NAME@DIGEST. Source: the grammar of distribution/reference.
IMAGE_NAME = re.compile(
    r"([\w.-]+(:\d+)?/)?[a-z0-9]+((/|[._-]+)[a-z0-9]+)*"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
IMAGE_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")
# What a path may have that stands, unquoted, in a mount option and in a systemd unit.
MOUNTABLE = re.compile(r"/[\w./@+=:-]+", re.ASCII)

PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")

# Variables without a default: optional ones, and what a role hands to the next.
OPTIONAL_VARIABLES = (
    "llm_api_key",
    "llm_hub_token",
    "llamacpp_image_ref",
    "llamacpp_image_is_being_built",
    "preflight_gpus",
    "llm_firewall_old_ports",
)
MISSPELLED = 0.85

TYPE_NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a dictionary",
    "null": "null",
}


def llm_problems(
    models: object,
    instances: object,
    server_settings: object,
    model_defaults: object,
    schema: dict[str, Any],
    hub_url: str = HUB_URL,
    backend: str = "auto",
    names: Iterable[str] = (),
    known: Iterable[str] = (),
    paths: dict[str, str] | None = None,
    proxies: dict[str, str] | None = None,
    lock: object = None,
    image: dict[str, str] | None = None,
    allowed_sources: object = (),
    probe: object = "all",
) -> list[str]:
    """Return every problem of the operator's input, one line each; empty when there is none.

    Args:
        models: llm_models as it was written, of whatever type.
        instances: llm_instances, likewise.
        server_settings: llm_server_settings, likewise.
        model_defaults: llm_model_defaults, likewise.
        schema: what the image's ``describe-settings`` prints for the pinned version: ``version``,
            ``server_settings``, ``model_settings`` and ``batch_settings`` (JSON Schema, Draft 2020-12),
            ``chat_formats``.
        hub_url: address of the model hub, whose files need no sha256 because it announces them.
        backend: llm_backend.
        names: names of all variables that are set.
        known: names of the variables that the project has.
        paths: paths on the host by the name of their variable; an empty one is not set.
        proxies: llm_proxy_environment.
        lock: llm_models_lock as it is, of whatever type; left out like an empty one.
        image: where the image comes from: ``source`` (llamacpp_image_source), ``archive``, ``registry_ref``
            and ``id`` (the variables of that name); left out it is built.
        allowed_sources: llm_allowed_sources as it was written, of whatever type.
        probe: llamacpp_server_probe as it was written, of whatever type.

    Errors: none; wrong input is what it reports.
    """
    problems = list(_misspelled(names, known))
    if not schema:
        problems.append(
            "llm_server_version: the settings of this version are not known to this release"
            " (files/image/settings-VERSION.json); take a version it has"
        )
    if backend not in BACKENDS:
        problems.append(
            _line(backend, f"llm_backend: {_short(backend)} is not a backend; {_nearest(backend, BACKENDS)}")
        )
    problems += _network_and_path_problems(paths or {}, proxies or {})
    problems += _image_problems(image or {"source": "build"})
    problems += _source_problems(allowed_sources)
    settings = _Settings(schema or {})
    problems += settings.check(
        "llm_server_settings", "", server_settings, "server_settings", RESERVED_SERVER_SETTINGS
    )
    problems += settings.check(
        "llm_model_defaults", "", model_defaults, "model_settings", RESERVED_MODEL_SETTINGS
    )
    problems += _lock_problems(lock)
    problems += _model_problems(models, settings, hub_url, lock if isinstance(lock, dict) else {})
    problems += _instance_problems(instances, models, backend, settings)
    problems += _probe_problems(probe, instances, models)
    if backend in ("auto", "cuda"):
        problems += _layer_problems(instances, models, model_defaults)
    return problems


def llm_known_variables(project: str) -> list[str]:
    """Return the names of the project's variables: the roles' and those of the shipped group_vars.

    Argument: project, the directory that holds roles/ and group_vars/.
    Errors: yaml.YAMLError or OSError when one of the project's own files cannot be read.
    """
    names = set(OPTIONAL_VARIABLES)
    for path in Path(project).glob("group_vars/*.yml"):
        names.update(_yaml(path))
    for path in Path(project).glob("roles/*/defaults/main.yml"):
        names.update(_yaml(path))
    for path in Path(project).glob("roles/*/meta/argument_specs.yml"):
        for entry_point in _yaml(path).get("argument_specs", {}).values():
            names.update(entry_point.get("options", {}))
    return sorted(names)


def _yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _misspelled(names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """Yield a problem for each variable that is none of the project's but looks like one."""
    known = sorted(set(map(str, known)))
    prefixes = tuple({f"{name.split('_')[0]}_" for name in known})
    for name in sorted(set(names) - set(known), key=str):
        if not prefixes or not str(name).startswith(prefixes):
            continue
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=MISSPELLED)
        if close:
            yield _line(
                name,
                f"{name} is not a variable of this project; did you mean {close[0]}?"
                " (if it is your own, list it in preflight_own_variables)",
            )


def _network_and_path_problems(paths: dict[str, str], proxies: dict[str, str]) -> Iterator[str]:
    """Yield the problems of paths on the host and of the proxy environment."""
    for name, path in paths.items():
        if path and not str(path).startswith("/"):
            yield _line(path, f"{name}: {_short(path)} must be an absolute path on the host")
    for name, value in proxies.items():
        if str(name).lower() not in PROXY_VARIABLES:
            yield _line(
                name,
                f"llm_proxy_environment: {name} is not a proxy variable; {_nearest(name, PROXY_VARIABLES)}",
            )
        elif not isinstance(value, str):
            yield _line(value, f"llm_proxy_environment: {name} is {_got(value)}; it must be a string", name)


def _image_problems(image: dict[str, str]) -> Iterator[str]:
    """Yield the problems of where the image comes from; see llm_problems."""
    source = image["source"]
    if source not in IMAGE_SOURCES:
        yield _line(
            source,
            f"llamacpp_image_source: {_short(source)} is not a source of the image;"
            f" {_nearest(source, IMAGE_SOURCES)}",
        )
        return
    if source == "archive" and not os.path.isfile(image["archive"]):
        archive = image["archive"]
        what = f"{archive} is not a file on this machine" if archive else "is empty"
        yield _line(
            archive,
            f"llamacpp_image_archive: {what}, but llamacpp_image_source is archive; give the path here of an"
            " archive that image.yml has written",
            source,
        )
    if source == "registry":
        name = image["registry_ref"]
        found = IMAGE_NAME.fullmatch(name)
        if not found or not (found["tag"] or found["digest"]):
            what = f"{_short(name)} names no image" if name else "is empty"
            yield _line(
                name,
                f"llamacpp_image_registry_ref: {what}, but llamacpp_image_source is registry; write"
                " REGISTRY/NAME@sha256:DIGEST, or REGISTRY/NAME:TAG",
                source,
            )
    if source != "build" and image["id"] and not IMAGE_ID.fullmatch(image["id"]):
        yield _line(
            image["id"],
            f"llamacpp_image_id: {_short(image['id'])} is not sha256: and 64 hexadecimal digits; write"
            " the id that `docker image ls --no-trunc` shows, or leave it out",
        )


def _source_problems(sources: object) -> Iterator[str]:
    """Yield the problems of llm_allowed_sources."""
    if not isinstance(sources, list | tuple):
        yield _line(
            sources,
            f"llm_allowed_sources: must be a list of addresses and networks, not {_got(sources)};"
            " [] lets everyone connect",
        )
        return
    for index, source in enumerate(sources):
        problem = _source_problem(source)
        if problem:
            yield _line(source, f"llm_allowed_sources[{index}]: {problem}", sources)


def _source_problem(source: object) -> str:
    """Return what is wrong with one address or network, nothing when it is right."""
    example = "write an address (192.0.2.10) or a network (192.0.2.0/24, fd00:1::/64)"
    if not isinstance(source, str):
        return f"is {_got(source)}; {example}, in quotes"
    text, shown = str(source), _short(source)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        if re.search(r"[g-z]", text.lower()):
            return f"{shown} is a name, not an address, and names are not looked up; {example}"
        return f"{shown} is neither an address nor a network; {example}"
    if "%" in text:
        return f"{shown} names an interface; write the address without %"
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        return f"{shown} is an IPv4 address in the form of IPv6; write {network.network_address.ipv4_mapped}"
    if network.prefixlen == network.max_prefixlen and network.network_address.is_unspecified:
        return f"{shown} is the address of nobody; llm_allowed_sources: [] lets everyone connect"
    address = ipaddress.ip_address(text.partition("/")[0])
    if address != network.network_address:
        return (
            f"{shown} is an address inside a network; write {network} for all of it,"
            f" or {address} for this one alone"
        )
    return ""


class _Settings:
    """The settings of one version of the server, and what is wrong with an operator's."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.version = schema.get("version", "")

    def check(
        self, where: str, prefix: str, settings: object, kind: str, reserved: dict[str, str]
    ) -> Iterator[str]:
        """Yield the problems of one dictionary of settings.

        Args:
            where: the variable, for example ``llm_models[1] (alias gemma3)``.
            prefix: ``settings`` where they are a key of that variable, else empty.
            settings: what the operator wrote.
            kind: ``server_settings``, ``model_settings`` or ``batch_settings``.
            reserved: settings that the project makes itself, with what to do instead.
        """
        if not isinstance(settings, dict):
            name = f"{where}: {prefix}".rstrip()
            yield _line(
                settings,
                f"{name} must be a dictionary (name: value), not {_got(settings)}; {{}} is empty",
            )
            return
        if kind not in self.schema:
            return
        properties = self.schema[kind].get("properties", {})
        for key, value in settings.items():
            shown = f"{where}: {prefix}.{key}" if prefix else f"{where}: {key}"
            valid = [name for name in properties if name not in reserved]
            if key in reserved:
                yield _line(key, f"{shown} must not be set: {reserved[key]}")
            elif key not in properties:
                yield _line(
                    key,
                    f"{shown} is not a setting of {SERVERS.get(kind, 'llama_cpp.server')} {self.version};"
                    f" {_nearest(key, valid)}",
                )
            else:
                yield from self._value(shown, key, value, properties[key], self.schema[kind].get("$defs", {}))

    def texts(self, kind: str, reserved: Iterable[str]) -> list[str]:
        """Return the names of the settings that take any text.

        Args:
            kind: ``server_settings`` or ``model_settings``.
            reserved: settings to leave out.
        """
        properties = self.schema.get(kind, {}).get("properties", {})
        return [
            name
            for name, schema in properties.items()
            if name not in reserved
            and any(
                option.get("type") == "string" and "enum" not in option
                for option in (schema, *schema.get("anyOf", ()))
            )
        ]

    def _value(
        self,
        shown: str,
        key: str,
        value: object,
        schema: dict[str, Any],
        definitions: dict[str, Any],
    ) -> Iterator[str]:
        """Yield the problem of one setting's value."""
        if any(value == also and not isinstance(value, bool) for also in ALSO_VALID.get(key, ())):
            return
        if not _fits(value, schema, definitions):
            hint = _unquoted(value, schema, definitions)
            yield _line(value, f"{shown} is {_got(value)}; it must be {_wanted(schema)}{hint}", key)
        elif key == "chat_format" and value is not None:
            formats = self.schema.get("chat_formats", [])
            if formats and value not in formats:
                close = difflib.get_close_matches(str(value), formats, n=1)
                mean = f"did you mean {close[0]}? " if close else ""
                yield _line(
                    value,
                    f"{shown} {value} is not a chat format of llama_cpp.server {self.version};"
                    f" {mean}"
                    f"valid are {', '.join(formats)} (left out: the template in the GGUF file)",
                    key,
                )


def _lock_problems(lock: object) -> Iterator[str]:
    """Yield the problems of llm_models_lock."""
    mend = "run `make lock`, which writes it"
    if lock is None:
        return
    if not isinstance(lock, dict):
        yield _line(
            lock, f"llm_models_lock: must be a dictionary (url: {{sha256, size}}), not {_got(lock)}; {mend}"
        )
        return
    for url, entry in lock.items():
        if not _locked_sha256(lock, url) or not isinstance(entry.get("size"), int):
            yield _line(
                entry,
                f"llm_models_lock: {_without_secrets(str(url))} has {_got(entry)}; it must have sha256 (64"
                f" hexadecimal digits) and size (bytes); {mend}",
                url,
            )


def _locked_sha256(lock: dict[str, Any], url: str) -> str:
    """Return the sha256 that the lock has for a URL, empty when it has none."""
    entry = lock.get(url)
    value = entry.get("sha256") if isinstance(entry, dict) else None
    return value.lower() if isinstance(value, str) and SHA256.fullmatch(value) else ""


def _model_problems(models: object, settings: _Settings, hub_url: str, lock: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of llm_models."""
    if not isinstance(models, list):
        yield _line(models, f"llm_models: must be a list of models, not {_got(models)}")
        return
    if not models:
        yield _line(models, "llm_models: is empty; give at least one model (alias, file, url)")
    aliases: dict[str, str] = {}
    files = _Files(hub_url, lock)
    for index, model in enumerate(models):
        where = f"llm_models[{index}]"
        if not isinstance(model, dict):
            yield _line(model, f"{where}: must be a dictionary (alias, file, url, …), not {_got(model)}")
            continue
        if isinstance(model.get("alias"), str):
            where += f" (alias {model['alias']})"
        yield from _keys(where, model, MODEL_KEYS, REQUIRED_MODEL_KEYS)
        yield from _alias_problems(where, model, aliases)
        yield from files.check(where, model)
        if "settings" in model:
            yield from settings.check(
                where, "settings", model["settings"], "model_settings", RESERVED_MODEL_SETTINGS
            )
        if "side_files" in model:
            yield from _side_file_problems(where, model, settings, files)


def _keys(
    where: str, entry: dict[str, Any], valid: tuple[str, ...], required: tuple[str, ...]
) -> Iterator[str]:
    """Yield a problem for each unknown and each missing key of a list entry."""
    for key in entry:
        if key not in valid:
            yield _line(key, f"{where}: {key} is not a key here; {_nearest(key, valid)}")
    for key in required:
        if key not in entry:
            yield _line(entry, f"{where}: {key} is missing; it must be given")


def _text(where: str, entry: dict[str, Any], key: str) -> Iterator[str]:
    """Yield a problem when a key is there and is no text that can be shown on one line."""
    value = entry.get(key, "-")
    if not isinstance(value, str) or not value.strip() or value != value.strip() or CONTROL.search(value):
        hint = "; write it in quotes" if isinstance(value, bool | int | float) else ""
        yield _line(
            value,
            f"{where}: {key} is {_got(value)}; it must be a string without spaces around it{hint}",
            _key_of(entry, key),
        )


def _alias_problems(where: str, model: dict[str, Any], aliases: dict[str, str]) -> Iterator[str]:
    """Yield the problems of a model's alias; remembers it in aliases."""
    wrong = list(_text(where, model, "alias"))
    yield from wrong
    alias = model.get("alias")
    if wrong or alias is None:
        return
    if alias in aliases:
        yield _line(
            alias,
            f"{where}: alias {alias} is already that of {aliases[alias]}, and the server would"
            f" know only one of them;"
            " give each model its own alias",
        )
    aliases.setdefault(alias, where.partition(" ")[0])


def _side_file_problems(
    where: str, model: dict[str, Any], settings: _Settings, files: _Files
) -> Iterator[str]:
    """Yield the problems of a model's side files; remembers them in files."""
    sides = model["side_files"]
    if not isinstance(sides, list):
        yield _line(
            sides,
            f"{where}: side_files is {_got(sides)}; it must be a list of dictionaries"
            " (setting, file, url, …)",
            _key_of(model, "side_files"),
        )
        return
    own = model.get("settings")
    taken = dict.fromkeys(own, "settings") if isinstance(own, dict) else {}
    valid = settings.texts("model_settings", RESERVED_MODEL_SETTINGS)
    for index, side in enumerate(sides):
        name = f"side_files[{index}]"
        place = f"{where} {name}"
        if not isinstance(side, dict):
            yield _line(side, f"{place}: must be a dictionary (setting, file, url, …), not {_got(side)}")
            continue
        yield from _keys(place, side, SIDE_FILE_KEYS, REQUIRED_SIDE_FILE_KEYS)
        wrong = list(_text(place, side, "setting"))
        yield from wrong
        if "setting" in side and not wrong:
            setting = side["setting"]
            if setting in RESERVED_MODEL_SETTINGS:
                yield _line(
                    setting,
                    f"{place}: setting {setting} must not be set: {RESERVED_MODEL_SETTINGS[setting]}",
                )
            elif settings.schema and setting not in valid:
                yield _line(
                    setting,
                    f"{place}: setting {setting} is no setting of llama_cpp.server {settings.version} that"
                    f" takes a path; {_nearest(setting, valid)}",
                )
            elif setting in taken:
                yield _line(
                    setting,
                    f"{place}: setting {setting} is already in {taken[setting]} of this model; give it once",
                )
            taken.setdefault(setting, name)
        yield from files.check(place, side)


class _Files:
    """The files of the catalogue, of models and beside them, and what is wrong with them.

    Args:
        hub_url: address of the model hub, whose files need no sha256 because it announces them.
        lock: llm_models_lock, whose files need none either.
    """

    def __init__(self, hub_url: str, lock: dict[str, Any]) -> None:
        self.hub_url = hub_url
        self.lock = lock
        # By name: which entry has it first, and what decides on its content there.
        self._known: dict[str, tuple[str, dict[str, object]]] = {}

    def check(self, where: str, entry: dict[str, Any]) -> Iterator[str]:
        """Yield the problems of one entry's file, source and sha256, and remember its files.

        Args:
            where: the entry, for example ``llm_models[1] (alias gemma3)``.
            entry: a model or side file.
        """
        count = _part_count(entry.get("file"))
        name_problems = list(_file_problems(where, entry))
        yield from name_problems
        yield from self._source_problems(where, entry)
        sha256_problems = list(_sha256_problems(where, entry, count))
        yield from sha256_problems
        if name_problems or "file" not in entry:
            return
        if not sha256_problems:
            yield from self._announced_problems(where, entry, count)
        yield from self._clash(where, entry, count)

    def _source_problems(self, where: str, entry: dict[str, Any]) -> Iterator[str]:
        """Yield the problems of where an entry's file comes from."""
        given = [key for key in SOURCES if key in entry]
        if len(given) > 1:
            yield _line(
                _key_of(entry, given[1]),
                f"{where}: {' and '.join(given)} are each a source, and a file has one; keep one of them",
            )
        elif not given:
            yield _line(entry, f"{where}: a source is missing; give one of {', '.join(SOURCES)}")
        elif given == ["hf"]:
            yield from _hub_problems(where, entry)
        else:
            wrong = list(_text(where, entry, given[0]))
            yield from wrong
            if not wrong and given == ["url"]:
                yield from _url_problems(where, entry["url"], self.hub_url)
            elif not wrong:
                yield from _path_problems(where, entry, given[0])
        if "link" in entry:
            yield from _link_problems(where, entry)
        if len(given) == 1:
            yield from _split_problems(where, entry, given[0])

    def _announced_problems(self, where: str, entry: dict[str, Any], count: int) -> Iterator[str]:
        """Yield where a sha256 is missing that nobody else knows, or is not that of the lock."""
        url = self._url(entry)
        hashes = _hashes(entry, count)
        needed = not _from_hub(url, self.hub_url) and len(entry.keys() & set(SOURCES)) == 1
        for part, sha256 in enumerate(hashes, 1):
            part_url = _part_name(url, part, count)
            locked = _locked_sha256(self.lock, part_url)
            if needed and not sha256 and not locked:
                yield _line(
                    entry.get("url", entry),
                    f"{where}: sha256 is missing, and only {self.hub_url} announces that of its files;"
                    f" {_sha256_mend(entry)}",
                )
                return
            if locked and sha256 not in ("", "none", locked):
                yield _line(
                    entry["sha256"],
                    f"{where}: sha256 {sha256} is not that of llm_models_lock, which has {locked} for"
                    f" {_without_secrets(part_url)}; correct it, or leave it to the lock",
                    _key_of(entry, "sha256"),
                )

    def _url(self, entry: dict[str, Any]) -> str:
        """Return the address of a source on a server, as the filter model_files makes it; else nothing."""
        hub = entry.get("hf")
        if not isinstance(hub, dict):
            url = entry.get("url", "")
            return url if isinstance(url, str) else ""
        revision = quote(str(hub.get("revision", "main")), safe="")
        path = quote(str(hub.get("file", entry["file"])))
        return f"{self.hub_url.rstrip('/')}/{hub.get('repository')}/resolve/{revision}/{path}"

    def _clash(self, where: str, entry: dict[str, Any], count: int) -> Iterator[str]:
        """Yield a problem when another entry has a file of the same name that is not the same."""
        source = {key: entry.get(key) for key in SOURCES} | {"link": entry.get("link", False)}
        for part, sha256 in enumerate(_hashes(entry, count), 1):
            name = _part_name(entry["file"], part, count)
            wanted = {**source, "sha256": sha256}
            other, first = self._known.setdefault(name, (where.partition(" ")[0], wanted))
            differing = [key for key in wanted if wanted[key] != first[key]]
            if differing:
                yield _line(
                    entry.get(differing[0], entry["file"]),
                    f"{where}: file {name} is also that of {other}, but with another"
                    f" {' and another '.join(differing)}; models that share a file need the same source and"
                    " sha256",
                )
                return


def _file_problems(where: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the name of a model's file or side file."""
    wrong = list(_text(where, entry, "file"))
    yield from wrong
    file = entry.get("file")
    if wrong or file is None:
        return
    if "/" in file or "\\" in file or file.startswith("."):
        yield _line(
            file,
            f"{where}: file {file} must be a plain file name; the directory is llm_models_dir for"
            f" all of them",
        )
    elif not file.endswith(".gguf"):
        yield _line(file, f"{where}: file {file} must end in .gguf; the server reads no other format")
    part = PART.search(file)
    if part and part[1] != "00001":
        first = f"{file[: part.start()]}-00001-of-{part[2]}{file[part.end() :]}"
        yield _line(
            file, f"{where}: file {file} is a later part of a split model; name the first one, {first}"
        )


def _part_count(name: object) -> int:
    """Return how many parts a file or address (of whatever type) stands for; 1 when it is not split."""
    part = PART.search(name) if isinstance(name, str) else None
    return int(part[2]) if part else 1


def _part_name(name: str, part: int, count: int) -> str:
    """Return the name or address of a part; the first one's (name) is given, as is the number of parts."""
    return name if count == 1 else PART.sub(f"-{part:05d}-of-{count:05d}", name, count=1)


def _hashes(entry: dict[str, Any], count: int) -> list[str]:
    """Return the sha256 of each of so many parts, in lower case; what is missing or wrong as nothing."""
    given = entry.get("sha256")
    values = given if isinstance(given, list) and len(given) == count else [given] * count
    return [value.lower() if isinstance(value, str) else "" for value in values]


def _split_problems(where: str, entry: dict[str, Any], key: str) -> Iterator[str]:
    """Yield a problem when a file and its source are not split alike; key is that of the source."""
    file = entry.get("file")
    source = entry[key].get("file", file) if isinstance(entry[key], dict) else entry[key]
    if (
        not isinstance(file, str)
        or not isinstance(source, str)
        or _part_count(file) == _part_count(source) == 1
    ):
        return
    shown = "hf.file" if key == "hf" else key
    parts = [found[0] if (found := PART.search(name)) else "" for name in (file, source)]
    if parts[0] == parts[1]:
        return
    if _part_count(file) > 1:
        yield _line(
            source,
            f"{where}: file {file} is split, but {shown} lacks {parts[0]}.gguf, from which those of the other"
            f" parts follow; correct {shown} or file",
            _key_of(entry, key),
        )
    else:
        yield _line(
            source,
            f"{where}: {shown} is part of a split model, but file {file} lacks {parts[1]}.gguf, by which the"
            " server finds the other parts; correct file",
            _key_of(entry, key),
        )


def _url_problems(where: str, url: str, hub_url: str) -> Iterator[str]:
    """Yield the problems of the url of a file."""
    try:
        parts = urlsplit(url)
        absolute = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        absolute = False
    if not absolute or " " in url:
        yield _line(
            url,
            f"{where}: url {_without_secrets(url)} must be absolute, like https://host/path/file.gguf",
        )
    elif _from_hub(url, hub_url) and "/blob/" in url:
        yield _line(
            url,
            f"{where}: url is the web page of the file; write /resolve/ instead of /blob/ in it",
        )


def _hub_problems(where: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the hub shorthand of a file."""
    hub = entry["hf"]
    if not isinstance(hub, dict):
        yield _line(
            hub,
            f"{where}: hf is {_got(hub)}; it must be a dictionary (repository, revision, file)",
            _key_of(entry, "hf"),
        )
        return
    where += ": hf"
    yield from _keys(where, hub, HUB_KEYS, ("repository",))
    for key, pattern, wanted in (
        ("repository", REPOSITORY, "OWNER/NAME, as on the hub's page"),
        ("revision", REVISION, "a commit (40 hexadecimal digits), a branch or a tag"),
        ("file", None, "a path in the repository, like directory/file.gguf"),
    ):
        wrong = list(_text(where, hub, key))
        yield from wrong
        if wrong or key not in hub:
            continue
        value = hub[key]
        valid = not value.startswith("/") and ".." not in value.split("/")
        if not valid or (pattern and not pattern.fullmatch(value)):
            yield _line(value, f"{where}: {key} {_short(value)} must be {wanted}")


def _path_problems(where: str, entry: dict[str, Any], key: str) -> Iterator[str]:
    """Yield the problems of a source that is a path; key is path or controller_path."""
    path = entry[key]
    if key == "path":
        if not path.startswith("/"):
            yield _line(path, f"{where}: path {_short(path)} must be an absolute path on the host")
        return
    count = _part_count(path)
    for part in range(1, count + 1):
        absolute = os.path.abspath(_part_name(path, part, count))
        if not os.path.isfile(absolute):
            yield _line(
                path,
                f"{where}: controller_path {absolute} is not a file on this machine, which runs Ansible; put"
                " it there, or correct controller_path",
            )
            return


def _link_problems(where: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of whether a file is linked."""
    link, path = entry["link"], entry.get("path")
    if not isinstance(link, bool):
        yield _line(link, f"{where}: link is {_got(link)}; it must be true or false", _key_of(entry, "link"))
    elif link and "path" not in entry:
        yield _line(
            _key_of(entry, "link"),
            f"{where}: link needs path, a file on the host; other sources are always copied, so leave it out",
        )
    elif link and isinstance(path, str) and path.startswith("/") and not MOUNTABLE.fullmatch(path):
        yield _line(
            path,
            f"{where}: path {_short(path)} has characters that a mount option cannot have; rename"
            " it, or leave link out",
        )


def _sha256_mend(entry: dict[str, Any]) -> str:
    """Return what to do about the sha256 of a file that nobody announces."""
    file = entry.get("file") if isinstance(entry.get("file"), str) else "FILE"
    return (
        f"write what `sha256sum {file}` prints where the file is trusted,"
        " or `sha256: none` to waive the check"
    )


def _sha256_problems(where: str, entry: dict[str, Any], count: int) -> Iterator[str]:
    """Yield the problems of the sha256 of a file, or of its parts (count)."""
    if "sha256" not in entry:
        return
    given = entry["sha256"]
    if isinstance(given, list) and count == 1:
        yield _line(
            given,
            f"{where}: sha256 is a list, but the file is not split; write one string",
            _key_of(entry, "sha256"),
        )
        return
    if isinstance(given, list) and len(given) != count:
        yield _line(
            given,
            f"{where}: sha256 has {len(given)} entries, but the model is split into {count} parts; write one"
            " for each, in their order",
            _key_of(entry, "sha256"),
        )
        return
    if count > 1 and isinstance(given, str) and given != "none":
        yield _line(
            given,
            f"{where}: sha256 is one string, but the model is split into {count} parts; write a list with one"
            " for each, or `sha256: none` to waive the check",
        )
        return
    for value in given if isinstance(given, list) else [given]:
        if not isinstance(value, str):
            yield _line(
                value,
                f"{where}: sha256 is {_got(value)}; it must be a string of 64 hexadecimal digits"
                f" (in quotes);"
                f" {_sha256_mend(entry)}",
                _key_of(entry, "sha256"),
            )
        elif value != "none" and not SHA256.fullmatch(value):
            yield _line(
                value,
                f"{where}: sha256 {value} is not 64 hexadecimal digits (it has {len(value)}"
                f" characters); {_sha256_mend(entry)}",
            )


def _from_hub(url: str, hub_url: str) -> bool:
    return url.startswith(hub_url.rstrip("/") + "/")


def _without_secrets(url: str) -> str:
    """Return a URL without the user and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)


def _instance_problems(instances: object, models: object, backend: str, settings: _Settings) -> Iterator[str]:
    """Yield the problems of llm_instances."""
    if not isinstance(instances, list):
        yield _line(instances, f"llm_instances: must be a list of instances, not {_got(instances)}")
        return
    if not instances:
        yield _line(
            instances,
            "llm_instances: is empty, so nothing would run; give at least one (name, port)",
        )
    aliases = None
    if isinstance(models, list):
        aliases = [model.get("alias") for model in models if isinstance(model, dict)]
    names: dict[str, str] = {}
    ports: dict[int, str] = {}
    for index, instance in enumerate(instances):
        where = f"llm_instances[{index}]"
        if not isinstance(instance, dict):
            yield _line(instance, f"{where}: must be a dictionary (name, port, …), not {_got(instance)}")
            continue
        if isinstance(instance.get("name"), str):
            where += f" (name {instance['name']})"
        yield from _keys(where, instance, INSTANCE_KEYS, REQUIRED_INSTANCE_KEYS)
        yield from _name_problems(where, instance, names)
        yield from _port_problems(where, instance, ports)
        yield from _gpu_problems(where, instance, backend)
        yield from _served_problems(where, instance, aliases)
        yield from _engine_problems(where, instance, models, settings)


def _engine_problems(
    where: str, instance: dict[str, Any], models: object, settings: _Settings
) -> Iterator[str]:
    """Yield the problems of an instance's engine, and of what only the batching one has."""
    engine = instance.get("engine", "server")
    if engine not in ENGINES:
        yield _line(
            engine,
            f"{where}: engine {_short(engine)} is not an engine; {_nearest(engine, ENGINES)}",
            instance,
        )
        return
    if engine == "server":
        for key in ("parallel", "settings"):
            if key in instance:
                yield _line(
                    _key_of(instance, key),
                    f"{where}: {key} is only for engine: batch; set that, or take {key} out",
                )
        return
    parallel = instance.get("parallel", 1)
    least, most = PARALLEL
    if isinstance(parallel, bool) or not isinstance(parallel, int) or not least <= parallel <= most:
        yield _line(
            parallel,
            f"{where}: parallel is {_got(parallel)}; it must be an integer from {least} to {most} (requests"
            " at once)",
            _key_of(instance, "parallel"),
        )
    if "settings" in instance:
        yield from settings.check(
            where, "settings", instance["settings"], "batch_settings", RESERVED_BATCH_SETTINGS
        )
    catalogue = models if isinstance(models, list) else []
    served = [
        model for model in catalogue if isinstance(model, dict) and _serves(instance, model.get("alias"))
    ]
    if len(served) != 1:
        names = ", ".join(str(model.get("alias")) for model in served) or "none"
        yield _line(
            instance.get("models", instance),
            f"{where}: engine batch serves one model, but this instance has {names}; name one in its models,"
            " and give each other one an instance of its own",
        )
        return
    yield from _batched_model_problems(where, instance, served[0])


def _batched_model_problems(where: str, instance: dict[str, Any], model: dict[str, Any]) -> Iterator[str]:
    """Yield what of a model's entry the batching server would leave aside, so that it answered otherwise."""
    alias = model.get("alias")
    own = instance.get("settings") if isinstance(instance.get("settings"), dict) else {}
    wanted = model.get("settings") if isinstance(model.get("settings"), dict) else {}
    for name in ONLY_OF_SERVER:
        if name not in wanted or (name == "chat_format" and "chat_template" in own):
            continue
        mend = (
            "give the instance settings: {chat_template: !unsafe …} (Jinja; null: the one in the GGUF file)"
            if name == "chat_format"
            else "serve it with engine: server, or take it out"
        )
        yield _line(
            wanted[name],
            f"{where}: engine batch does not know {name}, which model {alias} has in its settings; {mend}",
            _key_of(wanted, name),
        )
    if model.get("side_files"):
        yield _line(
            model["side_files"],
            f"{where}: engine batch does not know side_files, which model {alias} has; serve it with engine:"
            " server",
        )
    if wanted.get("n_ctx") == 0:
        yield _line(
            wanted["n_ctx"],
            f"{where}: engine batch needs to know how long a request may be, but n_ctx of model {alias} is 0;"
            " write the number of tokens",
            _key_of(wanted, "n_ctx"),
        )


def _probe_problems(probe: object, instances: object, models: object) -> Iterator[str]:
    """Yield the problems of llamacpp_server_probe, where the lists tell which models are served."""
    if probe == "all":
        return
    if not isinstance(probe, list):
        yield _line(
            probe,
            f"llamacpp_server_probe: is {_got(probe)}; it must be all, or a list of aliases of llm_models",
        )
        return
    catalogue = models if isinstance(models, list) else []
    aliases = [model["alias"] for model in catalogue if isinstance(model, dict) and "alias" in model]
    listed = [one for one in (instances if isinstance(instances, list) else []) if isinstance(one, dict)]
    served = [one["models"] if isinstance(one.get("models"), list) else aliases for one in listed]
    known = [alias for alias in aliases if any(alias in names for names in served)]
    for alias in probe:
        # Without any, other lines say what is wrong.
        if known and alias not in known:
            yield _line(
                alias,
                f"llamacpp_server_probe: {_short(alias)} is served by no instance; {_nearest(alias, known)}",
                probe,
            )


def _name_problems(where: str, instance: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    """Yield the problems of an instance's name; remembers it in names."""
    if "name" not in instance:
        return
    name = instance["name"]
    if not isinstance(name, str) or not INSTANCE_NAME.fullmatch(name):
        yield _line(
            name,
            f"{where}: name is {_got(name)}; it names a container, a host and a systemd unit, so"
            f" it must be"
            " 2 to 63 letters, digits, '-', '_' or '.', and begin with a letter or digit",
            _key_of(instance, "name"),
        )
        return
    if name in FOREIGN_UNITS or name.startswith("systemd-") or name.endswith(".service"):
        yield _line(
            name,
            f"{where}: name {name} would give {name}.service, which is or looks like a unit of"
            f" the system;"
            " take another name",
        )
    if name in names:
        yield _line(
            name,
            f"{where}: name {name} is already that of {names[name]}; give each instance its own name",
        )
    names.setdefault(name, where.partition(" ")[0])


def _port_problems(where: str, instance: dict[str, Any], ports: dict[int, str]) -> Iterator[str]:
    """Yield the problems of an instance's port; remembers it in ports."""
    if "port" not in instance:
        return
    port = instance["port"]
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        hint = "; write it without quotes" if isinstance(port, str) and port.isdigit() else ""
        yield _line(
            port,
            f"{where}: port is {_got(port)}; it must be an integer from 1 to 65535{hint}",
            _key_of(instance, "port"),
        )
        return
    if port in ports:
        yield _line(
            port,
            f"{where}: port {port} is already that of {ports[port]}; give each instance its own port",
        )
    ports.setdefault(port, where.partition(" ")[0])


def _gpu_problems(where: str, instance: dict[str, Any], backend: str) -> Iterator[str]:
    """Yield the problems of an instance's gpus."""
    if "gpus" not in instance:
        return
    gpus = instance["gpus"]
    if gpus != "all":
        if not isinstance(gpus, list):
            yield _line(
                gpus,
                f"{where}: gpus is {_got(gpus)}; it must be a list of GPU indexes or UUIDs, []"
                f" for none, or all",
                _key_of(instance, "gpus"),
            )
            return
        for gpu in gpus:
            is_index = isinstance(gpu, int) and not isinstance(gpu, bool) and gpu >= 0
            if not is_index and not (isinstance(gpu, str) and GPU_UUID.fullmatch(gpu)):
                yield _line(
                    gpu,
                    f"{where}: gpus has {_got(gpu)}; a GPU is an index (0, 1, …) or a UUID"
                    f" (GPU-…, see nvidia-smi -L)",
                )
        for gpu in sorted({str(gpu) for gpu in gpus if gpus.count(gpu) > 1}):
            yield _line(gpus, f"{where}: gpus has {gpu} twice; name each GPU once")
    if gpus and backend == "cpu":
        yield _line(
            gpus,
            f"{where}: gpus is {_short(gpus)}, but llm_backend is cpu, so gpus must be []; set gpus: [], or"
            " llm_backend: auto",
        )


def _layer_problems(instances: object, models: object, model_defaults: object) -> Iterator[str]:
    """Yield the models that an instance with GPUs would keep on the CPU, because nobody said otherwise."""
    defaults = model_defaults if isinstance(model_defaults, dict) else {}
    if "n_gpu_layers" in defaults or not isinstance(instances, list) or not isinstance(models, list):
        return
    for index, model in enumerate(models):
        settings = model.get("settings", {}) if isinstance(model, dict) else None
        if not isinstance(settings, dict) or "n_gpu_layers" in settings:
            continue
        alias = model.get("alias")
        for instance in instances:
            if not isinstance(instance, dict) or "n_gpu_layers" in (instance.get("settings") or ()):
                continue
            if instance.get("gpus") and _serves(instance, alias):
                yield _line(
                    alias,
                    f"llm_models[{index}] (alias {alias}): settings lack n_gpu_layers, so the engine keeps it"
                    f" on the CPU, but instance {instance.get('name')} has GPUs; set n_gpu_layers: -1 (all"
                    " layers), or 0 if that is meant",
                )
                break


def _serves(instance: dict[str, Any], alias: object) -> bool:
    """Whether an instance serves a model: it is in its list, or there is none."""
    served = instance.get("models")
    return served is None or (isinstance(served, list) and alias in served)


def _served_problems(where: str, instance: dict[str, Any], aliases: list[Any] | None) -> Iterator[str]:
    """Yield the problems of the aliases that an instance serves; aliases are the catalogue's."""
    if "models" not in instance:
        return
    served = instance["models"]
    if not isinstance(served, list):
        yield _line(
            served,
            f"{where}: models is {_got(served)}; it must be a list of aliases of llm_models (left"
            f" out: all of them)",
            _key_of(instance, "models"),
        )
        return
    if not served:
        yield _line(
            served,
            f"{where}: models is empty; name at least one alias, or leave it out to serve all",
        )
    for alias in served:
        if aliases is not None and alias not in aliases:
            known = ", ".join(map(str, aliases)) or "none"
            close = difflib.get_close_matches(str(alias), [str(alias) for alias in aliases], n=1)
            mean = f"; did you mean {close[0]}?" if close else ""
            yield _line(
                alias,
                f"{where}: models names {_short(alias)}, which llm_models does not have{mean} (it"
                f" has: {known})",
            )
    for alias in sorted({str(alias) for alias in served if served.count(alias) > 1}):
        yield _line(served, f"{where}: models has {alias} twice; name each alias once")


def _nearest(name: object, valid: Iterable[str]) -> str:
    """Return the question which valid name was meant, or all of them when none is near."""
    valid = list(valid)
    close = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid are {', '.join(valid)}"


def _wanted(schema: dict[str, Any]) -> str:
    """Describe in words what a JSON Schema accepts."""
    if "anyOf" in schema:
        options = sorted(schema["anyOf"], key=lambda option: option.get("type") != "null")
        return " or ".join(_wanted(option) for option in options)
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    words = TYPE_NAMES.get(schema.get("type", ""), "another value")
    if schema.get("type") == "array" and "items" in schema:
        words += f" whose entries are each {_wanted(schema['items'])}"
    bounds = [
        f"{text} {schema[key]}"
        for key, text in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "more than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
        )
        if key in schema
    ]
    return " of ".join([words, " and ".join(bounds)]) if bounds else words


def _fits(value: object, schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    """Whether a value is valid under a schema."""
    # Here and not above: Ansible imports every filter for every task, and this import takes half a second.
    from jsonschema import Draft202012Validator

    # A copy without Ansible's own types: jsonschema compares some of them by identity of type.
    return Draft202012Validator({**schema, "$defs": definitions}).is_valid(_plain(value))


def _unquoted(value: object, schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the hint that a value is right but for its quotes, or nothing."""
    if not isinstance(value, str):
        return ""
    try:
        meant = yaml.safe_load(value)
    except yaml.YAMLError:
        return ""
    if isinstance(meant, str) or not _fits(meant, schema, definitions):
        return ""
    return "; write it without quotes"


def _got(value: object) -> str:
    """Describe a value and its type in the words of YAML."""
    if value is None:
        return "null (nothing was written)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    kinds = (
        (str, "string"),
        (int, "integer"),
        (float, "number"),
        (list, "list"),
        (dict, "dictionary"),
    )
    for kind, name in kinds:
        if isinstance(value, kind):
            return f"{_short(value)} ({name})"
    return f"{_short(value)} ({type(value).__name__})"


def _short(value: object) -> str:
    """Return a value as a short text on one line."""
    text = repr(_plain(value)) if not isinstance(value, str) else f'"{_without_secrets(str(value))}"'
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(value: object) -> object:
    """Return a value with plain Python types in place of Ansible's tagged ones."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    return value


def _key_of(entry: dict[str, Any], key: str) -> object:
    """Return the key as it was written: it knows its line even where a value (true) cannot."""
    return next((written for written in entry if written == key), None)


def _line(value: object, message: str, *others: object) -> str:
    """Return a message with the file and line of the value, or else of one of the others."""
    message = CONTROL.sub(" ", message)
    if Origin is not None:
        for candidate in (value, *others):
            origin = Origin.get_tag(candidate)
            if origin is not None and origin.path and origin.line_num:
                path = os.path.relpath(origin.path)
                path = origin.path if path.startswith("..") else path
                return f"{message} [{path}:{origin.line_num}]"
    return message


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"llm_problems": llm_problems, "llm_known_variables": llm_known_variables}
