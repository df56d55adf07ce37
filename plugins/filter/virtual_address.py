"""Filters of the address that moves between gateways: what Keepalived is told, and what is wrong with it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

VARIABLE = "llm_gateway_virtual_address"
FIRST_PRIORITY = 200  # of 1 to 254; each further gateway has one less
MOST_GATEWAYS = 16
INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)  # stands unquoted in keepalived.conf


Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def gateway_peers(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what gateways have to know of each other, from the inventory, in its order.

    Args:
        names: hosts of the group gateways.
        hostvars: Ansible's variable of that name.

    Returns:
        Per host ``name``, ``address``, ``virtual_address`` and ``router_id``, of whatever type.
    """
    return [
        {
            "name": str(name),
            "address": hostvars[name].get("llm_gateway_address") or "",
            "virtual_address": hostvars[name].get(VARIABLE) or "",
            "router_id": hostvars[name].get("llm_gateway_virtual_router_id"),
        }
        for name in names
    ]


def virtual_address_plan(
    settings: dict[str, Any], peers: list[dict[str, Any]], this_host: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Return what keepalived.conf of a gateway says.

    Args:
        settings: the role's variables by name, without problems.
        peers: what gateway_peers returns.
        this_host: name of the gateway in the inventory.
        facts: ansible_facts of the gateway, those of its network among them.

    Returns:
        ``address`` (without its prefix length), ``with_prefix``, ``interface``, ``source`` (the gateway's own
        address), ``peers`` (addresses of the others) and ``priority``, the highest for the first of them.
    """
    names = [peer["name"] for peer in peers]
    own = names.index(this_host)
    source = str(peers[own]["address"])
    wanted = ipaddress.ip_interface(settings[VARIABLE])
    return {
        "address": str(wanted.ip),
        "with_prefix": wanted.with_prefixlen,
        "interface": settings["llm_gateway_virtual_interface"] or _addresses(facts).get(source, ""),
        "source": source,
        "peers": [str(peer["address"]) for peer in peers if peer["name"] != this_host],
        "priority": FIRST_PRIORITY - own,
    }


def virtual_address_problems(
    settings: dict[str, Any],
    peers: list[dict[str, Any]],
    hosts: list[dict[str, Any]],
    this_host: str,
    facts: dict[str, Any] | None = None,
) -> list[str]:
    """Return every problem of the variables about the virtual address, one line each.

    Args:
        settings: llm_gateway_virtual_address, llm_gateway_virtual_interface, llm_gateway_virtual_router_id
            and llm_gateway_bind_address, of whatever type.
        peers: what gateway_peers returns.
        hosts: the LLM hosts, as gateway_hosts returns them.
        this_host: name of the gateway in the inventory.
        facts: ansible_facts of the gateway; without those of its network, its interfaces are not looked at.

    Errors: none; wrong input is what it reports.
    """
    value = settings.get(VARIABLE)
    if value == "":
        return []
    wanted = _virtual_address(value)
    if isinstance(wanted, str):
        return [f"{VARIABLE}: is {_got(value)}; {wanted}"]
    problems = list(_setting_problems(settings, wanted))
    problems += _group_problems(settings, wanted, peers, hosts, this_host)
    if not problems:
        problems += _network_problems(settings, peers, this_host, facts or {})
    return problems


def _virtual_address(value: object) -> Interface | str:
    """Return an address with its prefix length, or what has to be written instead."""
    try:
        wanted = ipaddress.ip_interface(value if isinstance(value, str) else "")
    except ValueError:
        return 'it must be an address and the length of its prefix, for example 192.0.2.10/24, or "" for none'
    address, network = wanted.ip, wanted.network
    if "/" not in str(value):
        return f"write the length of its prefix too, as the gateways' own addresses have it: {address}/24"
    if address.is_loopback or address.is_multicast or address.is_unspecified or "%" in str(value):
        return "it must be an address that clients can reach"
    ends = (network.network_address, network.broadcast_address)
    if wanted.version == 4 and network.prefixlen < 31 and address in ends:
        return f"it must be an address in the network {network}, not the network or its broadcast address"
    return wanted


def _setting_problems(settings: dict[str, Any], wanted: Interface) -> Iterator[str]:
    """Yield the problems of a gateway's own variables."""
    router = settings.get("llm_gateway_virtual_router_id")
    if not isinstance(router, int) or isinstance(router, bool) or not 1 <= router <= 255:
        yield (
            f"llm_gateway_virtual_router_id: is {_got(router)}; it must be an integer from 1 to 255 that"
            " no other"
            " VRRP of this network has"
        )
    interface = settings.get("llm_gateway_virtual_interface")
    if interface != "" and (not isinstance(interface, str) or not INTERFACE.fullmatch(interface)):
        yield (
            f"llm_gateway_virtual_interface: is {_got(interface)}; it must be the name of a network"
            " interface, or"
            ' "" for that of llm_gateway_address'
        )
    bound = settings.get("llm_gateway_bind_address")
    everywhere = ("*", "0.0.0.0", "::") if wanted.version == 4 else ("::",)
    written = settings[VARIABLE].partition("/")[0]  # haproxy.cfg compares texts
    if bound not in (*everywhere, written):
        yield (
            f"llm_gateway_bind_address: is {_got(bound)}, so nobody would answer at {VARIABLE}; set"
            f' "{everywhere[0]}"'
            f' or "{written}"'
        )


def _group_problems(
    settings: dict[str, Any],
    wanted: Interface,
    peers: list[dict[str, Any]],
    hosts: list[dict[str, Any]],
    this_host: str,
) -> Iterator[str]:
    """Yield the problems of what the gateways know of each other."""
    if this_host not in [peer["name"] for peer in peers]:
        yield f"llm_gateway_peers: {this_host} is not in it; name all gateways that share {VARIABLE}"
    if len(peers) > MOST_GATEWAYS:
        yield f"llm_gateway_peers: has {len(peers)} gateways; {MOST_GATEWAYS} can share an address"
    seen: dict[Any, str] = {}
    for peer in peers:
        name, address = peer["name"], _ip(peer["address"])
        if _other(peer["virtual_address"], settings[VARIABLE]):
            yield (
                f"{VARIABLE}: is {_got(settings[VARIABLE])} on {this_host}, but"
                f" {_got(peer['virtual_address'])} on"
                f" {name}; set it for the group gateways"
            )
        elif peer["router_id"] != settings.get("llm_gateway_virtual_router_id"):
            yield (
                f"llm_gateway_virtual_router_id: is {_got(settings.get('llm_gateway_virtual_router_id'))} on"
                f" {this_host}, but {_got(peer['router_id'])} on {name}; set it for the group gateways"
            )
        if address is None or address.is_loopback:
            yield (
                f"llm_gateway_address of {name}: is {_got(peer['address'])}; gateways that share an"
                " address know"
                " each other by address, so write that of this host, for example 192.0.2.5"
            )
        elif address == wanted.ip:
            yield f"{VARIABLE}: {address} is {name}'s own address; take one that no host has"
        elif address.version != wanted.version:
            yield (
                f"llm_gateway_address of {name}: {address} is IPv{address.version}, but {VARIABLE} is"
                f" IPv{wanted.version}; give one of the same kind"
            )
        elif address in seen:
            yield f"llm_gateway_address of {name}: {address} is also that of {seen[address]}"
        else:
            seen[address] = name
    names = {peer["name"] for peer in peers}
    for host in hosts:
        if host["name"] not in names and _ip(host["address"]) == wanted.ip:
            yield f"{VARIABLE}: {wanted.ip} is {host['name']}'s own address; take one that no host has"


def _network_problems(
    settings: dict[str, Any], peers: list[dict[str, Any]], this_host: str, facts: dict[str, Any]
) -> Iterator[str]:
    """Yield what does not fit the network of the host itself."""
    found = _addresses(facts)
    interfaces = facts.get("interfaces")
    if not interfaces:
        return
    source = next(str(peer["address"]) for peer in peers if peer["name"] == this_host)
    if source not in found:
        has = ", ".join(address for address in found if not ipaddress.ip_address(address).is_loopback)
        yield (
            f"llm_gateway_address of {this_host}: {source} is no address of this host; it has {has or 'none'}"
        )
    interface = settings["llm_gateway_virtual_interface"]
    if interface and interface not in interfaces:
        yield (
            f"llm_gateway_virtual_interface: {this_host} has no {interface}; it has"
            f" {', '.join(sorted(one for one in interfaces if one != 'lo'))}"
        )


def _addresses(facts: dict[str, Any]) -> dict[str, str]:
    """Return the interface of each address of a host."""
    found = {}
    for device in facts.values():
        if not isinstance(device, dict) or "device" not in device:
            continue
        entries = [device.get("ipv4") or {}, *device.get("ipv4_secondaries", []), *device.get("ipv6", [])]
        found |= {entry["address"]: device["device"] for entry in entries if entry.get("address")}
    return found


def _other(one: object, another: object) -> bool:
    """Tell whether two virtual addresses differ, however they are written."""
    texts = [one if isinstance(one, str) else "", another]
    try:
        return len({ipaddress.ip_interface(text) for text in texts}) > 1
    except ValueError:
        return True


def _ip(text: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text if isinstance(text, str) else "")
    except ValueError:
        return None


def _got(value: object) -> str:
    """Describe a value on one line."""
    if value is None:
        return "null (nothing was written)"
    if isinstance(value, bool):
        return "true or false"
    text = " ".join((f'"{value}"' if isinstance(value, str) else str(value)).split())
    text = "".join(one for one in text if one.isprintable())
    return text if len(text) <= 60 else f"{text[:57]}…"


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "gateway_peers": gateway_peers,
            "virtual_address_plan": virtual_address_plan,
            "virtual_address_problems": virtual_address_problems,
        }
