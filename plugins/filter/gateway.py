"""Filters of the gateway: which servers it has, what serves which model, and what is wrong with its input.

No message has anything of a key in it.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Stands unquoted in haproxy.cfg, in a map file (which ends keys at spaces) and in JSON. Libraries of clients
# escape what is not ASCII, and HAProxy does not read such escapes back.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
# What a bearer token may have (RFC 6750).
KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
KEY_LENGTH = (32, 256)
CLIENT_KEYS = ("name", "key", "requests_per_minute", "concurrent_requests")
REQUIRED_CLIENT_KEYS = ("name", "key")
LIMITS = ("requests_per_minute", "concurrent_requests")
PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+", re.ASCII)
CLOSED_PATHS = {
    "/v1/models": "the gateway answers it itself",
    "/docs": "it needs no key",
    "/redoc": "it needs no key",
    "/openapi.json": "it needs no key",
}
ADDRESS = re.compile(r"[A-Za-z0-9._:-]+", re.ASCII)

SYSTEMS = {"Debian": ("12", "13"), "Ubuntu": ("24.04",)}  # Ubuntu 22.04 has HAProxy 2.4
# Smallest and largest values; HAProxy counts milliseconds in 31 bits.
NUMBERS = {
    "llm_gateway_max_body": (16384, 64 * 2**20, "bytes"),
    "llm_gateway_maxconn": (10, 100_000, "connections"),
    "llm_gateway_server_maxconn": (1, 1000, "requests"),
    "llm_gateway_queue_timeout": (1, 86400, "seconds"),
    "llm_gateway_body_timeout": (1, 3600, "seconds"),
    "llm_gateway_answer_timeout": (60, 7 * 86400, "seconds"),
    "llm_gateway_load_timeout": (10, 86400, "seconds"),
}


def gateway_hosts(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a gateway has to know of each LLM host, from the inventory.

    Args:
        names: hosts of the group llm_hosts.
        hostvars: Ansible's variable of that name.

    Returns:
        Per host ``name``, ``address``, ``instances``, ``models``, ``key_sha256`` (of llm_api_key)
        and ``certificate`` (PEM text, empty for plain HTTP).
    """
    variables = {
        "address": ("llm_gateway_address", ""),
        "instances": ("llm_instances", []),
        "models": ("llm_models", []),
        "certificate": ("llm_tls_certificate", ""),
    }
    return [
        {"name": str(name)}
        | {key: hostvars[name].get(variable) or empty for key, (variable, empty) in variables.items()}
        | {"key_sha256": _sha256(hostvars[name].get("llm_api_key") or "")}
        for name in names
    ]


def gateway_plan(hosts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the backends of a gateway.

    Models that the same instances serve share a backend, and so one queue. An instance that belongs to
    several backends is reached through a relay, a proxy of its own: HAProxy counts requests per backend.

    Args:
        hosts: what gateway_hosts returns, without problems.

    Returns:
        ``models``: aliases, in the order of the catalogues. ``pools``: the backends, each ``name``,
        ``models``, ``balance``, ``tls``, ``switches`` (whether it matters which of its servers has a model
        loaded), ``homes`` (by alias, the server that a model begins at) and ``servers``, those with the
        fewest models first. ``relays``: the servers that have one. A server is ``name`` (HOST:INSTANCE),
        ``id`` (the same for names of variables), ``host``, ``address`` (in brackets where it is IPv6),
        ``port``, ``models``, ``maxconn`` (requests at once; None: as for any server), ``certificate``
        (whether it has one) and ``relay`` (its name, or empty).
    """
    servers = list(_servers(hosts))
    aliases = list(dict.fromkeys(alias for host in hosts for alias in _aliases(host)))
    serving = {
        alias: tuple(server["name"] for server in servers if alias in server["models"]) for alias in aliases
    }
    models = [alias for alias in aliases if serving[alias]]
    sets = list(dict.fromkeys(serving[alias] for alias in models))
    for server in servers:
        if sum(server["name"] in names for names in sets) > 1:
            server["relay"] = "llm-" + hashlib.sha256(server["name"].encode()).hexdigest()[:16]
    taken = {"llm", "llm-clients", "llm-redirect", "llm-state", "llm-stats"}  # of haproxy.cfg itself
    pools = []
    for names in sets:
        own = [alias for alias in models if serving[alias] == names]
        members = sorted((one for one in servers if one["name"] in names), key=lambda one: len(one["models"]))
        sizes = {len(one["models"]) for one in members}
        choice = len(members) > 1
        pools.append(
            {
                "name": _unique(re.sub(r"[^A-Za-z0-9._-]", "-", own[0]), taken),
                "models": own,
                "servers": members,
                # "first" fills them in their order: those that never switch models come before the others.
                "balance": "leastconn" if len(sizes) == 1 else "first",
                "tls": any(one["certificate"] and not one["relay"] for one in members),
                "switches": choice and max(sizes) > 1,
                "homes": {alias: members[i % len(members)]["name"] for i, alias in enumerate(own)}
                if choice and len(own) > 1
                else {},
            }
        )
    return {
        "models": models,
        "pools": pools,
        "relays": [server for server in servers if server["relay"]],
    }


def hosts_meanwhile(before: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a gateway may serve while the hosts are changed: what it serves, without what will go.

    Args:
        before: the hosts that it serves, as gateway_hosts has returned them then.
        wanted: the hosts that it is to serve.

    Returns:
        The hosts of before; each instance has the models that it will have, too.
    """
    will_serve = {server["name"]: server["models"] for server in _servers(wanted)}
    meanwhile = []
    for host in before:
        kept = [
            instance | {"models": models}
            for instance in _dictionaries(host["instances"])
            for server in _servers([host | {"instances": [instance]}])
            if (models := [one for one in server["models"] if one in will_serve.get(server["name"], ())])
        ]
        if kept:
            meanwhile.append(host | {"instances": kept})
    return meanwhile


def served_by_one(plan: dict[str, Any]) -> list[str]:
    """Return the models that one instance alone serves, as ``ALIAS (HOST:INSTANCE)``.

    Args:
        plan: what gateway_plan returns.
    """
    alone = (pool for pool in plan["pools"] if len(pool["servers"]) == 1)
    return [f"{alias} ({pool['servers'][0]['name']})" for pool in alone for alias in pool["models"]]


def gateway_files(
    plan: dict[str, Any], clients: list[dict[str, Any]], servers_key: str = ""
) -> dict[str, dict[str, str]]:
    """Return the files that haproxy.cfg names, by file name, in ``open`` and ``secret`` ones.

    Args:
        plan: what gateway_plan returns.
        clients: llm_gateway_clients, without problems.
        servers_key: llm_api_key of the servers; empty where they want none.
    """
    listed = [
        {"id": alias, "object": "model", "created": 0, "owned_by": "llm_gateway"} for alias in plan["models"]
    ]
    public = {
        "models.json": [json.dumps({"object": "list", "data": listed})],
        # What a relay answers when it has not reached its server.
        "not-reached.http": ["HTTP/1.1 425 Too Early", "Content-Length: 0", ""],
        "models.map": [f"{alias} {pool['name']}" for pool in plan["pools"] for alias in pool["models"]],
    }
    for limit in LIMITS:
        public[f"{limit}.map"] = [f"{one['name']} {one[limit]}" for one in clients if one.get(limit)]
    secret = {
        # HAProxy's converter hex writes upper case.
        "clients.map": [f"{_sha256(one['key']).upper()} {one['name']}" for one in clients],
        "servers-key.map": [f"servers {servers_key}"] if servers_key else [],
    }
    return {
        kind: {name: "".join(f"{line}\n" for line in lines) for name, lines in files.items()}
        for kind, files in (("open", public), ("secret", secret))
    }


def gateway_authorities(hosts: list[dict[str, Any]], authorities: str = "") -> dict[str, dict[str, str]]:
    """Return how HAProxy recognises the LLM servers that have a certificate, by host.

    Args:
        hosts: what gateway_hosts returns, without problems.
        authorities: llm_gateway_servers_authorities.

    Returns:
        Per host what server_authority returns.
    """
    return {
        host["name"]: server_authority(host["certificate"], authorities)
        for host in hosts
        if host["certificate"]
    }


def server_authority(certificate: str, authorities: str = "") -> dict[str, str]:
    """Return how HAProxy recognises an LLM server by its certificate.

    HAProxy trusts self-signed certificates only (it does not set OpenSSL's X509_V_FLAG_PARTIAL_CHAIN). So a
    self-signed certificate is recognised itself, and one of an authority by the authority and its name.

    Args:
        certificate: llm_tls_certificate, PEM text of the server's certificate and its chain.
        authorities: PEM text of authorities; left out, those of the chain, or else those that the gateway's
            system trusts.

    Returns:
        ``ca``: PEM text, empty for the system's; ``name``: the name that the certificate must have, or empty.
    """
    # Here and not above: Ansible imports every filter for every task.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    def text(one: x509.Certificate) -> str:
        return one.public_bytes(Encoding.PEM).decode()

    chain = x509.load_pem_x509_certificates(str(certificate).encode())
    leaf = chain[0]
    if leaf.subject == leaf.issuer:
        return {"ca": text(leaf), "name": ""}
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        dns = []
    common = [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    name = next((one for one in [*dns, *common] if ADDRESS.fullmatch(one)), "")
    roots = "".join(text(one) for one in chain[1:] if one.subject == one.issuer)
    given = str(authorities).strip()
    return {"ca": f"{given}\n" if given else roots, "name": name}


def gateway_problems(
    settings: dict[str, Any],
    hosts: list[dict[str, Any]],
    this_host: str = "",
    facts: dict[str, Any] | None = None,
) -> list[str]:
    """Return every problem of a gateway's input, one line each; empty when there is none.

    Args:
        settings: the gateway's variables by name, of whatever type.
        hosts: what gateway_hosts returns.
        this_host: name of the gateway in the inventory.
        facts: ansible_facts of the gateway; left out, its operating system is not looked at.

    Errors: none; wrong input is what it reports.
    """
    problems = list(_system_problems(facts or {}))
    problems += _number_problems(settings)
    problems += _listener_problems(settings, hosts, this_host)
    problems += _path_problems(settings.get("llm_gateway_paths"))
    problems += _client_problems(settings.get("llm_gateway_clients"), hosts)
    problems += _server_problems(hosts, this_host)
    key = settings.get("llm_gateway_servers_key")
    if key and (not isinstance(key, str) or not KEY.fullmatch(key)):
        problems.append(
            "llm_api_key: has characters that a bearer token cannot have; letters, digits and . _ ~ + /"
            " - may be"
            " in it, and = at its end"
        )
    problems += _model_problems(hosts)
    problems += _default_problems(settings.get("llm_gateway_default_model"), hosts)
    return problems


def _system_problems(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the problem of an operating system without a HAProxy that can do it."""
    name, version = facts.get("distribution"), str(facts.get("distribution_version", ""))
    if name and not any(
        name == known and (version == release or version.startswith(f"{release}."))
        for known, releases in SYSTEMS.items()
        for release in releases
    ):
        known = ", ".join(f"{system} {'/'.join(releases)}" for system, releases in SYSTEMS.items())
        yield (
            f"operating system {name} {version} has no HAProxy from 2.6 on that this is tested with; take a"
            f" gateway with {known}"
        )


def _number_problems(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of sizes, limits and time-outs."""
    for name, (least, most, unit) in NUMBERS.items():
        value = settings.get(name)
        if not _is_integer(value) or not least <= value <= most:
            yield f"{name}: is {_got(value)}; it must be an integer from {least} to {most} ({unit})"


def _listener_problems(
    settings: dict[str, Any], hosts: list[dict[str, Any]], this_host: str
) -> Iterator[str]:
    """Yield the problems of the addresses and ports that the gateway listens on."""
    address = settings.get("llm_gateway_bind_address")
    if not isinstance(address, str) or not (address == "*" or _is_address(address)):
        yield (
            f"llm_gateway_bind_address: is {_got(address)}; it must be an address of the gateway, or *"
            " for all of"
            " IPv4, or :: for all of both"
        )
    taken = {
        instance.get("port"): f"that of instance {instance.get('name')} on this host"
        for host in hosts
        if host["name"] == this_host
        for instance in _dictionaries(host["instances"])
    }
    ports = ["llm_gateway_port"]
    if settings.get("llm_gateway_redirect_port") != 0:
        ports.append("llm_gateway_redirect_port")
    for name in ports:
        port = settings.get(name)
        if not _is_integer(port) or not 1 <= port <= 65535:
            off = "; 0 turns it off" if name == "llm_gateway_redirect_port" else ""
            yield f"{name}: is {_got(port)}; it must be an integer from 1 to 65535{off}"
        elif port in taken:
            yield f"{name}: {port} is {taken[port]}; take another port"
        else:
            taken[port] = f"also {name}"
    for name, example in (
        ("llm_gateway_stats_bind", "127.0.0.1:8404"),
        ("llm_gateway_client_metrics_bind", "127.0.0.1:3903"),
    ):
        bind = settings.get(name)
        if not bind:
            continue
        found = (
            re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+):(\d{1,5})", bind) if isinstance(bind, str) else None
        )
        if not found or not _is_address(found[1].strip("[]")) or not 1 <= int(found[2]) <= 65535:
            yield f'{name}: is {_got(bind)}; write ADDRESS:PORT, for example {example}, or "" to have none'
        elif int(found[2]) in taken:
            yield f"{name}: port {found[2]} is {taken[int(found[2])]}; take another port"
        else:
            taken[int(found[2])] = f"also that of {name}"


def _path_problems(paths: object) -> Iterator[str]:
    """Yield the problems of llm_gateway_paths."""
    if not isinstance(paths, list) or not paths:
        yield (
            f"llm_gateway_paths: is {_got(paths)}; it must be a list of paths, for example"
            " /v1/chat/completions"
        )
        return
    for path in paths:
        if not isinstance(path, str) or not PATH.fullmatch(path):
            yield f"llm_gateway_paths: {_got(path)} is not a path; write it like /v1/chat/completions"
        elif path in CLOSED_PATHS:
            yield f"llm_gateway_paths: {path} is closed on purpose; take it out ({CLOSED_PATHS[path]})"


def _client_problems(clients: object, hosts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the problems of llm_gateway_clients."""
    if not isinstance(clients, list) or not clients:
        what = (
            "is empty, so nobody could use the gateway"
            if clients in ([], None, "")
            else f"is {_kind(clients)}"
        )
        yield f"llm_gateway_clients: {what}; give a list with at least one client (name, key)"
        return
    names: dict[str, int] = {}
    keys = {host["key_sha256"]: "llm_api_key" for host in hosts}
    for index, client in enumerate(clients):
        where = f"llm_gateway_clients[{index}]"
        # What was written may be a key: none of it is shown.
        if not isinstance(client, dict):
            yield f"{where}: must be a dictionary (name, key), not {_kind(client)}"
            continue
        name = client.get("name")
        named = isinstance(name, str) and CLIENT_NAME.fullmatch(name)
        if named:
            where += f" (name {name})"
        for key in client:
            if key not in CLIENT_KEYS:
                close = difflib.get_close_matches(str(key), CLIENT_KEYS, n=1)
                mean = f"did you mean {close[0]}?" if close else f"valid are {', '.join(CLIENT_KEYS)}"
                yield f"{where}: {_got(str(key))} is not a key here; {mean}"
        for key in REQUIRED_CLIENT_KEYS:
            if key not in client:
                yield f"{where}: {key} is missing; it must be given"
        if "name" in client and not named:
            yield (
                f"{where}: name must be 1 to 63 letters, digits, '-', '_' or '.', and begin with a letter"
                " or digit,"
                " because it stands in logs"
            )
        if named and name in names:
            yield (
                f"{where}: name {name} is already that of llm_gateway_clients[{names[name]}]; give each"
                " its own"
            )
        elif named:
            names[name] = index
        if "key" in client:
            yield from _key_problems(where, client["key"], keys)
        for limit in LIMITS:
            value = client.get(limit, 1)
            if not _is_integer(value) or not 1 <= value <= 1_000_000:
                yield (
                    f"{where}: {limit} is {_got(value)}; it must be an integer from 1 to 1000000; left"
                    " out, there"
                    " is no limit"
                )


def _key_problems(where: str, key: object, keys: dict[str, str]) -> Iterator[str]:
    """Yield the problems of a client's key; remembers it in keys, as its sha256."""
    make = "make one with `openssl rand -hex 32`"
    if not isinstance(key, str):
        yield f"{where}: key is {_kind(key)}; it must be a string in quotes; {make}"
        return
    if not KEY_LENGTH[0] <= len(key) <= KEY_LENGTH[1]:
        yield (
            f"{where}: key has {len(key)} characters; it must have {KEY_LENGTH[0]} to {KEY_LENGTH[1]}, so"
            " that nobody"
            f" guesses it; {make}"
        )
    elif not KEY.fullmatch(key):
        yield (
            f"{where}: key has characters that a bearer token cannot have; letters, digits and . _ ~ + /"
            " - may be"
            f" in it, and = at its end; {make}"
        )
    elif keys.setdefault(_sha256(key), where) != where:
        yield f"{where}: key is also that of {keys[_sha256(key)]}; give each client its own; {make}"


def _server_problems(hosts: list[dict[str, Any]], this_host: str) -> Iterator[str]:
    """Yield the problems of the servers' addresses and of their key."""
    if not any(True for _ in _servers(hosts)):
        yield (
            "llm_hosts: no host has an instance with a model, so the gateway would have no server; add a host"
        )
    keys: dict[str, str] = {}
    for host in hosts:
        name, address = host["name"], host["address"]
        if not isinstance(address, str) or not ADDRESS.fullmatch(address):
            yield (
                f"llm_gateway_address of {name}: is {_got(address)}; it must be the address or name at which"
                " gateways reach this host"
            )
        elif name != this_host and _is_loopback(address):
            yield (
                f"llm_gateway_address of {name}: {address} is the gateway itself, not {name}; give the"
                " address at"
                " which gateways reach it"
            )
        keys.setdefault(host["key_sha256"], name)
        yield from _certificate_problems(host)
    if len(keys) > 1:
        first, second = list(keys.values())[:2]
        yield (
            f"llm_api_key: {first} and {second} have different ones, or one has none, but a gateway has"
            " one key"
            " for all servers; set the same for the group llm_hosts"
        )


def _certificate_problems(host: dict[str, Any]) -> Iterator[str]:
    """Yield the problem of a server's certificate that HAProxy could not tell from others."""
    if not host["certificate"]:
        return
    try:
        authority = server_authority(host["certificate"])
    except ValueError:
        yield f"llm_tls_certificate of {host['name']}: cannot be read as PEM text; copy the whole file"
        return
    if not authority["name"] and not authority["ca"]:
        yield (
            f"llm_tls_certificate of {host['name']}: has neither a DNS name nor a common name, by which"
            " the gateway"
            " could tell it from others of its authority; have one made with a DNS name"
        )


def _model_problems(hosts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the problems of the models' names, and of one name for different files."""
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    for host in hosts:
        for model in _dictionaries(host["models"]):
            alias = str(model.get("alias"))
            if not any(alias in server["models"] for server in _servers([host])):
                continue
            if alias not in seen and not MODEL_NAME.fullmatch(alias):
                yield (
                    f"llm_models of {host['name']}: alias {_got(alias)} cannot be routed by; behind a"
                    " gateway it must be"
                    " 1 to 128 letters, digits or . _ : / @ + -, and begin with a letter or digit"
                )
            other, first = seen.setdefault(alias, (host["name"], model))
            differs = [
                key
                for key in ("file", "sha256")
                if key in first and key in model and str(first[key]).lower() != str(model[key]).lower()
            ]
            if differs:
                yield (
                    f"llm_models: alias {alias} is {_got(str(first[differs[0]]))} on {other}, but"
                    f" {_got(str(model[differs[0]]))} on {host['name']} ({differs[0]}); clients would get"
                    " either, so give"
                    " one of them another alias"
                )


def _default_problems(default: object, hosts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the problem of llm_gateway_default_model."""
    if default in ("", None):
        return
    known = list(dict.fromkeys(alias for server in _servers(hosts) for alias in server["models"]))
    if default not in known:
        close = difflib.get_close_matches(str(default), known, n=1)
        mean = f"; did you mean {close[0]}?" if close else ""
        yield (
            f"llm_gateway_default_model: {_got(default)} is served by no instance{mean} (served are:"
            f' {", ".join(known) or "none"}; "" answers requests without a model with 400)'
        )
        return
    for server in _servers(hosts):
        if default in server["models"] and server["models"][0] != default:
            yield (
                f"llm_gateway_default_model: {server['name']} would answer with {server['models'][0]},"
                " because a"
                f" server answers requests without a model with its first; put {default} first in the"
                " models of"
                " this instance"
            )


def _servers(hosts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the servers of all hosts, without relays; instances and models that are none are left out."""
    for host in hosts:
        for instance in _dictionaries(host["instances"]):
            own = instance.get("models")
            models = [str(alias) for alias in (_aliases(host) if own is None else own)]
            if not models:
                continue
            name = f"{host['name']}:{instance.get('name')}"
            address = str(host["address"])
            yield {
                "name": name,
                "id": re.sub(r"[^A-Za-z0-9]", "_", name),
                "host": host["name"],
                "address": f"[{address}]" if ":" in address else address,
                "port": instance.get("port"),
                "models": models,
                # A batching server answers so many at once (the filter llm_config has the same default).
                "maxconn": instance.get("parallel", 8) if instance.get("engine") == "batch" else None,
                "certificate": bool(host.get("certificate")),
                "relay": "",
            }


def _aliases(host: dict[str, Any]) -> list[str]:
    return [str(model["alias"]) for model in _dictionaries(host["models"]) if "alias" in model]


def _dictionaries(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _unique(name: str, taken: set[str]) -> str:
    """Return the name, with a number where it is taken already; remembers it."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique)
    return unique


def _sha256(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    return text == "localhost" or (_is_address(text) and ipaddress.ip_address(text).is_loopback)


def _kind(value: object) -> str:
    """Name the type of a value in the words of YAML, without the value."""
    if value is None:
        return "null (nothing was written)"
    if isinstance(value, bool):
        return "true or false"
    kinds = (
        (str, "a string"),
        (int, "an integer"),
        (float, "a number"),
        (list, "a list"),
        (dict, "a dictionary"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), type(value).__name__)


def _got(value: object) -> str:
    """Describe a value and its type on one line."""
    if value is None or isinstance(value, bool):
        return _kind(value)
    text = " ".join((f'"{value}"' if isinstance(value, str) else str(value)).split())
    text = "".join(one for one in text if one.isprintable())
    return text if len(text) <= 60 else f"{text[:57]}…"


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "gateway_hosts": gateway_hosts,
            "gateway_plan": gateway_plan,
            "hosts_meanwhile": hosts_meanwhile,
            "served_by_one": served_by_one,
            "gateway_files": gateway_files,
            "gateway_authorities": gateway_authorities,
            "gateway_problems": gateway_problems,
        }
