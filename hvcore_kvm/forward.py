"""Ports of the host that lead into the guest, for NIC modes that are user programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from hvcore import Finding, checks, param


@attrs.frozen(kw_only=True)
class Forward:
    """A port of the host that leads into the guest."""

    host_port: int = param(checks=(checks.port_number,), summary="Port on the host.")
    guest_port: int = param(checks=(checks.port_number,), summary="Port in the guest.")
    host_address: str = param(
        default="127.0.0.1",
        checks=(checks.ip_address,),
        summary="Address on the host that listens; loopback by default.",
    )
    protocol: str = param(default="tcp", choices=("tcp", "udp"), summary="Protocol.")


def check_forwards(forwards: Iterable[Forward]) -> Iterator[Finding]:
    """Two of them cannot share a port; paths below the NIC."""
    seen: set[tuple[str, str, int]] = set()
    for index, forward in enumerate(forwards):
        key = (forward.protocol, forward.host_address, forward.host_port)
        if key in seen:
            where = f"params.forward[{index}].host_port"
            yield Finding(code="repeated-value", path=where, message=f"{forward.host_port} is forwarded twice")
        seen.add(key)
