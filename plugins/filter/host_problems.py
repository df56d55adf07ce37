"""Filter ``host_problems``: why a host cannot take the deployment, one line each."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote, urlsplit

# A container with this label was started by this project, whatever its name.
OWN_LABEL = "io.ansible-llamacpp.release"
ARCHITECTURES = ("x86_64", "aarch64")
HUB_URL = "https://huggingface.co"


def host_problems(
    host: dict[str, Any],
    facts: dict[str, Any],
    wanted: dict[str, Any],
    sources: dict[str, dict[str, Any]] | None = None,
) -> list[str]:
    """Return every reason why a host cannot take the deployment; empty when there is none.

    Args:
        host: what the module preflight_facts found.
        facts: ``ansible_facts``.
        wanted: what is to be deployed: ``files`` (of the models, from the filter model_files),
            ``lock`` (llm_models_lock), ``instances`` (the catalogue's list), ``supported_os`` (dict of
            distribution to list of versions), ``user``, ``uid``, ``gid``, ``models_dir``,
            ``docker_root``, ``image_bytes``, ``headroom_bytes`` and ``hub_url``.
        sources: what the module gguf_source found, by URL.

    Errors: KeyError when one of the arguments lacks a key (a mistake in the role).
    """
    return [
        *system_problems(facts, wanted["supported_os"]),
        *id_problems(host["ids"], wanted["user"], wanted["uid"], wanted["gid"]),
        *[
            f"llm_ca_bundle: {path} is not on this host; copy it there, or correct the path"
            for path in host["missing_files"]
        ],
        *port_problems(host, wanted["instances"]),
        *source_problems(host["models"], wanted, sources or {}),
        *space_problems(host, wanted, sources or {}),
    ]


def system_problems(facts: dict[str, Any], supported: dict[str, list[str]]) -> list[str]:
    """Return what is wrong with operating system, processor and service manager.

    Args:
        facts: ``ansible_facts``.
        supported: distribution to its versions; "22.04" also stands for 22.04.5, "12" for 12.11.
    """
    problems = []
    name = facts.get("distribution", "unknown")
    version = str(facts.get("distribution_version", ""))
    versions = [str(known) for known in supported.get(name, [])]
    if not any(version == known or version.startswith(f"{known}.") for known in versions):
        known = ", ".join(
            f"{system} {'/'.join(map(str, releases))}" for system, releases in supported.items()
        )
        problems.append(
            f"operating system {name} {version} is not supported (supported: {known});"
            " use such a host, or add this one to preflight_supported_os at your own risk"
        )
    architecture = facts.get("architecture")
    if architecture not in ARCHITECTURES:
        problems.append(
            f"processor architecture {architecture} is not supported; use {' or '.join(ARCHITECTURES)}"
        )
    manager = facts.get("service_mgr")
    if manager != "systemd":
        problems.append(f"the service manager is {manager}, not systemd; use a host that systemd runs")
    return problems


def id_problems(ids: dict[str, Any], user: str, uid: int, gid: int) -> list[str]:
    """Return clashes of the wanted user and group with those of the host.

    Args:
        ids: from the module preflight_facts.
        user: name of the user and its group.
        uid: wanted number of the user.
        gid: wanted number of the group.
    """
    problems = []
    for kind, number, holder, existing in (
        ("uid", uid, ids["name_of_uid"], ids["uid_of_user"]),
        ("gid", gid, ids["name_of_gid"], ids["gid_of_group"]),
    ):
        what = "user" if kind == "uid" else "group"
        if holder not in ("", user):
            problems.append(
                f"llm_{kind}: {number} is already the {kind} of {what} {holder} on this host;"
                f" choose a free llm_{kind}"
            )
        if existing not in (None, number):
            problems.append(
                f"llm_{kind}: {what} {user} exists on this host with {kind} {existing},"
                f" not {number}; set llm_{kind}: {existing}, or choose another llm_user"
            )
    return problems


def port_problems(host: dict[str, Any], instances: list[dict[str, Any]]) -> list[str]:
    """Return the instances whose port somebody else has.

    Ours is a port that a container of this project publishes, also one that is about to go.

    Args:
        host: what the module preflight_facts found.
        instances: llm_instances.
    """
    problems = []
    names = [instance["name"] for instance in instances]
    for index, instance in enumerate(instances):
        port = instance["port"]
        where = f"llm_instances[{index}] (name {instance['name']}): port {port}"
        mend = "stop it, or give the instance another port"
        publishers = [container for container in host["containers"] if port in container["ports"]]
        foreign = [
            container["name"]
            for container in publishers
            if container["name"] not in names and OWN_LABEL not in container["labels"]
        ]
        listener = host["listeners"].get(str(port))
        if foreign:
            problems.append(f"{where} is published by the container {foreign[0]}; {mend}")
        elif listener and not publishers:
            problems.append(f"{where} is taken by {_process(listener)}; {mend}")
    return problems


def _process(listener: dict[str, Any]) -> str:
    """Name a process so that an operator finds it."""
    if not listener["pid"]:
        return "a process that cannot be seen (in another container or namespace)"
    unit = f", {listener['unit']}" if listener["unit"] else ""
    return f"{listener['process']} (pid {listener['pid']}{unit})"


def needs_source(entry: dict[str, Any], state: str) -> bool:
    """Whether the source of a file must answer: the file, or its sha256, is to come from there.

    Args:
        entry: of the filter model_files.
        state: of the file, from the module preflight_facts.
    """
    return state in ("absent", "outdated") or (state == "unverified" and not entry["sha256"])


def urls_to_ask(files: list[dict[str, Any]], host: dict[str, Any]) -> list[str]:
    """Return the URLs of the servers' files that must answer, each once.

    Args:
        files: from the filter model_files.
        host: what the module preflight_facts found.
    """
    wanted = [
        entry["url"]
        for entry in files
        if urlsplit(entry["url"]).scheme in ("http", "https")
        and needs_source(entry, host["models"][entry["file"]]["state"])
    ]
    return list(dict.fromkeys(wanted))


def source_problems(
    states: dict[str, dict[str, Any]], wanted: dict[str, Any], sources: dict[str, dict[str, Any]]
) -> list[str]:
    """Return the files whose source cannot give what is needed.

    Args:
        states: of the files, from the module preflight_facts.
        wanted: see host_problems.
        sources: see host_problems.
    """
    problems = []
    for entry in wanted["files"]:
        state = states[entry["file"]]
        if urlsplit(entry["url"]).scheme == "file":
            problem = _path_problem(entry, state)
        elif entry["url"] in sources and needs_source(entry, state["state"]):
            problem = _answer_problem(entry, wanted, sources[entry["url"]])
        else:
            continue
        if problem:
            problems.append(f"{entry['where']}: {problem}")
    return problems


def _path_problem(entry: dict[str, Any], state: dict[str, Any]) -> str:
    """Return what is wrong with a source on the host, or nothing."""
    path = unquote(urlsplit(entry["url"]).path)
    source = state["source"]
    if source is None and (entry["link"] or needs_source(entry, state["state"])):
        return f"path {path} is not a file on this host; mount its directory there, or correct path"
    if entry["link"] and source["leads_to"]:
        return (
            f"path {path} is itself a link out of its directory, which a container could not follow;"
            f" write path: {source['leads_to']}"
        )
    return ""


def _answer_problem(entry: dict[str, Any], wanted: dict[str, Any], source: dict[str, Any]) -> str:
    """Return what is wrong with the answer of a file's server, or nothing."""
    expected, announced = entry["sha256"], source["sha256"]
    if source["problem"]:
        return source["problem"]
    if not expected and not announced:
        return (
            f"{wanted['hub_url']} announces no sha256 for this url;"
            f" write what `sha256sum {entry['file']}` prints where the file is trusted,"
            " or `sha256: none` to waive the check"
        )
    if not announced or expected in ("", "none", announced):
        return ""
    if expected == wanted["lock"].get(entry["url"], {}).get("sha256"):
        return (
            f"llm_models_lock has sha256 {expected}, but {wanted['hub_url']} now announces {announced};"
            ' pin the commit, or accept the new file by `make lock INVENTORY=… ARGS="-e lock_update=true"`'
        )
    return (
        f"sha256 expected {expected}, but {wanted['hub_url']} announces {announced}; correct sha256, or pin"
        " the commit in the url"
    )


def size_of(entry: dict[str, Any], state: dict[str, Any], sources: dict[str, dict[str, Any]]) -> int:
    """Return how many bytes a file has at its source, 0 when that is not known.

    Args:
        entry: of the filter model_files.
        state: of the file, from the module preflight_facts.
        sources: see host_problems.
    """
    url = urlsplit(entry["url"])
    if url.scheme == "controller":
        return os.path.getsize(unquote(url.path))
    if url.scheme == "file":
        return state["source"]["size"] if state["source"] else 0
    return sources.get(entry["url"], {}).get("size") or entry["size"]


def space_problems(
    host: dict[str, Any], wanted: dict[str, Any], sources: dict[str, dict[str, Any]]
) -> list[str]:
    """Return the filesystems with too little room for what is still to be written there.

    Args:
        host: what the module preflight_facts found.
        wanted: see host_problems.
        sources: see host_problems; a size of 0 (not announced) counts as nothing.
    """
    needs: dict[str, dict[str, int]] = {}  # directory -> what for -> bytes

    for entry in wanted["files"]:
        found = host["models"][entry["file"]]
        size = size_of(entry, found, sources)
        # An unverified file of the right size is most likely right, and then only read.
        replaced = found["state"] == "unverified" and found["size"] != size
        missing = size - found["partial"]
        if not entry["link"] and missing > 0 and (replaced or found["state"] in ("absent", "outdated")):
            what = f"{'rest of ' if found['partial'] else ''}model {entry['file']}"
            needs.setdefault(wanted["models_dir"], {})[what] = missing
    if not host["image_present"] and wanted["image_bytes"]:
        root = host["docker_root"] or wanted["docker_root"]
        needs.setdefault(root, {})["image (preflight_image_bytes)"] = wanted["image_bytes"]

    problems = []
    by_device: dict[int, list[str]] = {}
    for directory in needs:
        by_device.setdefault(host["space"][directory]["device"], []).append(directory)
    for directories in by_device.values():
        items = {what: size for path in directories for what, size in needs[path].items()}
        items["head-room (preflight_headroom_bytes)"] = wanted["headroom_bytes"]
        free = host["space"][directories[0]]["free"]
        total = sum(items.values())
        if free < total:
            listed = ", ".join(f"{what} {_gib(size)}" for what, size in items.items() if size)
            problems.append(
                f"too little space for {' and '.join(directories)}: needed {_gib(total)}"
                f" ({listed}), free {_gib(free)}; free some, or choose another"
                f" {'llm_models_dir' if wanted['models_dir'] in directories else 'disk for Docker'}"
            )
    return problems


def _gib(size: int) -> str:
    """Return a size in bytes as text in GiB, or MiB where that is more readable."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"host_problems": host_problems, "urls_to_ask": urls_to_ask}
