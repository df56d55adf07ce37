"""Filters ``llm_problems`` and ``llm_known_variables``: what is wrong with the operator's input.

Every problem is one line: which variable, what is wrong, what to do, and, where Ansible knows it,
file and line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from jsonschema import Draft202012Validator

try:  # where a value was written; ansible-core 2.19 and later
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

HUB_URL = "https://huggingface.co"
BACKENDS = ("auto", "cpu", "cuda")

MODEL_KEYS = ("alias", "file", "url", "sha256", "settings")
INSTANCE_KEYS = ("name", "port", "gpus", "models")
REQUIRED_MODEL_KEYS = ("alias", "file", "url")
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
# The engine turns -1 into the number of CPUs before it checks the minimum (set_dynamic_defaults of
# ModelSettings).
ALSO_VALID = {"n_threads": (-1,), "n_threads_batch": (-1,)}

# Units that hosts of this kind have already; an instance of that name would overwrite one.
FOREIGN_UNITS = ("docker", "containerd", "dbus", "ssh", "sshd", "cron", "networking")
# What is valid as a container name, a host name and a unit name at once.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,62}")
GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")

# Variables without a default: optional ones, and what a role hands to the next.
OPTIONAL_VARIABLES = ("llm_api_key", "llamacpp_image_ref", "preflight_gpus")
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
) -> list[str]:
    """Return every problem of the operator's input, one line each; empty when there is none.

    Args:
        models: llm_models as it was written, of whatever type.
        instances: llm_instances, likewise.
        server_settings: llm_server_settings, likewise.
        model_defaults: llm_model_defaults, likewise.
        schema: what the image's ``describe-settings`` prints for the pinned version: ``version``,
            ``server_settings`` and ``model_settings`` (JSON Schema, Draft 2020-12),
            ``chat_formats``.
        hub_url: address of the model hub, whose files need no sha256 because it announces them.
        backend: llm_backend.
        names: names of all variables that are set.
        known: names of the variables that the project has.
        paths: paths on the host by the name of their variable; an empty one is not set.
        proxies: llm_proxy_environment.

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
    settings = _Settings(schema or {})
    problems += settings.check(
        "llm_server_settings", "", server_settings, "server_settings", RESERVED_SERVER_SETTINGS
    )
    problems += settings.check(
        "llm_model_defaults", "", model_defaults, "model_settings", RESERVED_MODEL_SETTINGS
    )
    problems += _model_problems(models, settings, hub_url)
    problems += _instance_problems(instances, models, backend)
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
            kind: ``server_settings`` or ``model_settings``.
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
                    f"{shown} is not a setting of llama_cpp.server {self.version}; {_nearest(key, valid)}",
                )
            else:
                yield from self._value(shown, key, value, properties[key], self.schema[kind].get("$defs", {}))

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
        # A copy without Ansible's own types: jsonschema compares some of them by identity of type.
        if not Draft202012Validator({**schema, "$defs": definitions}).is_valid(_plain(value)):
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


def _model_problems(models: object, settings: _Settings, hub_url: str) -> Iterator[str]:
    """Yield the problems of llm_models."""
    if not isinstance(models, list):
        yield _line(models, f"llm_models: must be a list of models, not {_got(models)}")
        return
    if not models:
        yield _line(models, "llm_models: is empty; give at least one model (alias, file, url)")
    aliases: dict[str, str] = {}
    files: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, model in enumerate(models):
        where = f"llm_models[{index}]"
        if not isinstance(model, dict):
            yield _line(model, f"{where}: must be a dictionary (alias, file, url, …), not {_got(model)}")
            continue
        if isinstance(model.get("alias"), str):
            where += f" (alias {model['alias']})"
        yield from _keys(where, model, MODEL_KEYS, REQUIRED_MODEL_KEYS)
        yield from _alias_problems(where, model, aliases)
        yield from _file_problems(where, model, files)
        yield from _url_problems(where, model, hub_url)
        yield from _sha256_problems(where, model, hub_url)
        if "settings" in model:
            yield from settings.check(
                where, "settings", model["settings"], "model_settings", RESERVED_MODEL_SETTINGS
            )


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


def _file_problems(
    where: str, model: dict[str, Any], files: dict[str, tuple[str, dict[str, Any]]]
) -> Iterator[str]:
    """Yield the problems of a model's file, which two models may share; remembers it in files."""
    wrong = list(_text(where, model, "file"))
    yield from wrong
    file = model.get("file")
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
    if file in files:
        other, first = files[file]
        for key in ("url", "sha256"):
            if _comparable(model.get(key)) != _comparable(first.get(key)):
                yield _line(
                    model.get(key, file),
                    f"{where}: file {file} is also that of {other}, but with another {key};"
                    " models that share a file need the same url and sha256",
                )
    files.setdefault(file, (where.partition(" ")[0], model))


def _comparable(value: object) -> object:
    return value.lower() if isinstance(value, str) and SHA256.fullmatch(value) else value


def _url_problems(where: str, model: dict[str, Any], hub_url: str) -> Iterator[str]:
    """Yield the problems of a model's url."""
    wrong = list(_text(where, model, "url"))
    yield from wrong
    url = model.get("url")
    if wrong or url is None:
        return
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


def _sha256_problems(where: str, model: dict[str, Any], hub_url: str) -> Iterator[str]:
    """Yield the problems of a model's sha256, which only the hub's files may leave out."""
    file = model.get("file") if isinstance(model.get("file"), str) else "FILE"
    mend = (
        f"write what `sha256sum {file}` prints where the file is trusted,"
        " or `sha256: none` to waive the check"
    )
    if "sha256" in model:
        value = model["sha256"]
        if not isinstance(value, str):
            yield _line(
                value,
                f"{where}: sha256 is {_got(value)}; it must be a string of 64 hexadecimal digits"
                f" (in quotes);"
                f" {mend}",
                _key_of(model, "sha256"),
            )
        elif value != "none" and not SHA256.fullmatch(value):
            yield _line(
                value,
                f"{where}: sha256 {value} is not 64 hexadecimal digits (it has {len(value)}"
                f" characters); {mend}",
            )
    elif isinstance(model.get("url"), str) and not _from_hub(model["url"], hub_url):
        yield _line(
            model["url"],
            f"{where}: sha256 is missing, and only {hub_url} announces that of its files; {mend}",
        )


def _from_hub(url: str, hub_url: str) -> bool:
    return url.startswith(hub_url.rstrip("/") + "/")


def _without_secrets(url: str) -> str:
    """Return a URL without the user and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)


def _instance_problems(instances: object, models: object, backend: str) -> Iterator[str]:
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
            if isinstance(instance, dict) and instance.get("gpus") and _serves(instance, alias):
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


def _unquoted(value: object, schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the hint that a value is right but for its quotes, or nothing."""
    if not isinstance(value, str):
        return ""
    try:
        meant = yaml.safe_load(value)
    except yaml.YAMLError:
        return ""
    if isinstance(meant, str) or not Draft202012Validator({**schema, "$defs": definitions}).is_valid(meant):
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
