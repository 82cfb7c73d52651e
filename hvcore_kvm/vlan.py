"""VLANs of a port of a switch, as NIC parameters write them."""

from __future__ import annotations

import attrs

LAST_VLAN = 4094
"""The highest number of a VLAN; 0 and 4095 mean something else."""


@attrs.frozen(kw_only=True)
class Vlans:
    """The VLANs of a port: the one whose packets the guest sees without a tag, and those with one."""

    native: int | None
    tagged: tuple[int, ...]


def parse_vlan(text: str) -> Vlans:
    """Read ``10`` or ``.10`` (one VLAN, untagged), ``:10:20`` (all tagged), ``.10:20:30`` (the first untagged).

    Raises:
        ValueError: it is none of these; the text says why.
    """
    first, *rest = text.split(":")
    if text.startswith(":"):
        native = None
    elif rest and not first.startswith("."):
        raise ValueError(f"{text[:40]!r} begins with neither a dot (untagged) nor a colon (tagged)")
    else:
        native = _vlan(first.removeprefix("."))
    vlans = Vlans(native=native, tagged=tuple(_vlan(item) for item in rest))
    known = [*vlans.tagged, *([] if native is None else [native])]
    if len(set(known)) < len(known):
        raise ValueError(f"{text[:40]!r} names a VLAN twice")
    return vlans


def is_vlan(value: str) -> str | None:
    """Check of a parameter: what `parse_vlan` reads."""
    try:
        parse_vlan(value)
    except ValueError as error:
        return str(error)
    return None


def _vlan(item: str) -> int:
    if not item.isascii() or not item.isdigit() or len(item) > 4 or not 1 <= int(item) <= LAST_VLAN:
        raise ValueError(f"{item[:20]!r} is not a VLAN from 1 to {LAST_VLAN}")
    return int(item)
