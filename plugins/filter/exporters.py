"""Filters of the exporters: what is wrong with their input, and what is told of certificates."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

BIND = re.compile(r"(?P<address>\[[0-9A-Fa-f:.]+\]|[0-9.]+):(?P<port>\d{1,5})", re.ASCII)
NAME = "llm_node_exporter_bind"


def exporter_problems(bind: object, gpus: object = False, ports: Iterable[object] = ()) -> list[str]:
    """Return every problem of the exporters' input, one line each; empty when there is none.

    Args:
        bind: llm_node_exporter_bind, of whatever type; empty for no node exporter.
        gpus: llm_gpu_exporter, of whatever type.
        ports: TCP ports of this host that are somebody else's.

    Errors: none; wrong input is what it reports.
    """
    problems = []
    if not isinstance(gpus, bool):
        problems.append(f"llm_gpu_exporter: is {_got(gpus)}; it must be true or false")
    if bind in ("", None):
        if gpus is True:
            problems.append(
                f"llm_gpu_exporter: is true, but {NAME} is empty, and the node exporter is what shows the"
                f" metrics of GPUs; set {NAME}, or llm_gpu_exporter: false"
            )
        return problems
    found = BIND.fullmatch(bind) if isinstance(bind, str) else None
    if not found or not _is_address(found["address"].strip("[]")) or not 1 <= int(found["port"]) <= 65535:
        problems.append(
            f'{NAME}: is {_got(bind)}; write ADDRESS:PORT, for example 192.0.2.10:9100, or "" to have none'
        )
    elif int(found["port"]) in {int(port) for port in ports if str(port).isdecimal()}:
        problems.append(f"{NAME}: port {found['port']} is already used on this host; take another port")
    return problems


def certificate_metrics(certificates: Mapping[str, object]) -> str:
    """Return when certificates end, in the text format of Prometheus.

    Args:
        certificates: PEM texts by name (letters, digits, _ and -). Of each the first certificate counts.
            Empty texts and such as cannot be read are left out: what is wrong with them is told elsewhere.

    Errors: none.
    """
    # Here and not above: Ansible imports every filter for every task.
    from cryptography import x509

    name = "llm_certificate_not_after_seconds"
    lines = [
        f"# HELP {name} When the deployed certificate ends, in seconds since 1970.",
        f"# TYPE {name} gauge",
    ]
    for key, text in sorted(certificates.items()):
        try:
            chain = x509.load_pem_x509_certificates(str(text or "").encode())
        except ValueError:
            continue
        lines.append(f'{name}{{certificate="{key}"}} {int(chain[0].not_valid_after_utc.timestamp())}')
    return "".join(f"{line}\n" for line in lines)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _got(value: object) -> str:
    """Describe a value on one line."""
    return " ".join((f'"{value}"' if isinstance(value, str) else repr(value)).split())[:60]


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"exporter_problems": exporter_problems, "certificate_metrics": certificate_metrics}
