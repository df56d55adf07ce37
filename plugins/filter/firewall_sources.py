"""Filter ``firewall_sources``: addresses and networks as nftables takes them."""

from __future__ import annotations

import ipaddress


def firewall_sources(sources: list[str]) -> dict[str, list[str]]:
    """Return addresses and networks by family, sorted, none within another.

    nftables' sets of intervals refuse elements that overlap.

    Args:
        sources: addresses and networks (CIDR), IPv4 and IPv6, for example ``10.0.0.0/8`` and ``fd00::1``.

    Returns:
        ``ipv4`` and ``ipv6``, each a list of networks (CIDR).

    Errors: ValueError for what is neither address nor network.
    """
    networks = [ipaddress.ip_network(str(source)) for source in sources]
    return {
        f"ipv{version}": [
            str(network)
            for network in ipaddress.collapse_addresses(net for net in networks if net.version == version)
        ]
        for version in (4, 6)
    }


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict:
        """Return the filter by name."""
        return {"firewall_sources": firewall_sources}
