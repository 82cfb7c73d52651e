"""NIC mode ``routed``: a tap of its own, to which the host routes the guest's addresses.

The host answers for its gateway and its neighbours (proxy ARP and NDP). Routes and settings vanish with the tap; rules
that lead into a routing table outlive it, and are removed when QEMU is gone.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import ipaddress
import os
from collections.abc import Iterator

import attrs

from hvcore import Finding, HostError, Nic, Step, checks, param
from hvcore_kvm import NetworkInterface, NicContext, NicMode, NicPlan, TapParameters, check_tap, hookimpl, plan_tap

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_TABLE_FILES = (
    "/usr/lib/iproute2/rt_tables",
    "/usr/share/iproute2/rt_tables",
    "/etc/iproute2/rt_tables",
    "/etc/iproute2/rt_tables.d/*.conf",
)
"""Where administrators give names to routing tables; what stands later holds."""

_TABLES = {"default": 253, "main": 254, "local": 255}
_LOCAL = 255
_PROXIES = {4: "proxy_arp", 6: "proxy_ndp"}


@attrs.frozen(kw_only=True)
class RoutedParameters(TapParameters):
    """Parameters of NIC mode ``routed``."""

    addresses: tuple[str, ...] = param(
        default=(),
        item_checks=(checks.ip_address,),
        summary="More addresses of the guest, beside the NIC's ip: IPv4 or IPv6.",
    )
    proxy_arp: bool = param(
        default=True, summary="The host answers the guest's ARP requests for whatever it has a route to."
    )
    proxy_ndp: bool = param(
        default=True, summary="The same for IPv6, for neighbours that the host is told to stand for."
    )


class RoutedNetwork:
    """Plans a tap with routes."""

    tap = True

    def check(self, nic: Nic, parameters: RoutedParameters) -> Iterator[Finding]:
        """The guest's address has to be known, and no address twice."""
        if nic.ip is None:
            message = "NIC mode routed needs the address that it leads to the guest"
            yield Finding(code="missing-parameter", path="ip", message=message, hint='for example ip = "192.0.2.7"')
        seen: set[IpAddress] = set()
        given = [*([("ip", nic.ip)] if nic.ip is not None else [])]
        given += [(f"params.addresses[{index}]", text) for index, text in enumerate(parameters.addresses)]
        for path, text in given:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                hint = "an address, without the length of a prefix" if "/" in text else None
                message = f"{text[:60]!r} is not an IP address"
                yield Finding(code="invalid-value", path=path, message=message, hint=hint)
                continue
            if not _is_host(address):
                yield Finding(code="invalid-value", path=path, message=f"{address} is no address of a guest")
            elif address in seen:
                yield Finding(code="repeated-value", path=path, message=f"{address} is given twice")
            seen.add(address)
        if nic.link is not None:
            yield from _check_table(nic.link)

    def check_host(self, nic: Nic, parameters: RoutedParameters) -> Iterator[Finding]:
        """The routing table has a name, IPv6 is there if it is needed, and we may make taps."""
        if nic.link is not None and table_number(nic.link) is None:
            known = ", ".join(sorted(_table_names()))
            message = f"no routing table is called {nic.link[:40]!r}"
            yield Finding(code="no-such-table", path="link", message=message, hint=f"known: {known}, and all numbers")
        if 6 in _versions(nic, parameters) and not os.path.isdir("/proc/sys/net/ipv6"):
            yield Finding(code="no-ipv6", path="ip", message="this host has no IPv6")
        yield from check_tap(nic)

    def plan(self, context: NicContext) -> NicPlan:
        """A tap that gets the routes."""
        nic, parameters = context.nic, context.parameters
        configure = functools.partial(_lead, _addresses(nic, parameters), nic.link, parameters)
        plan = plan_tap(
            context,
            f"tap with a route to {', '.join(map(str, _addresses(nic, parameters)))}",
            NetworkInterface.bring_up if context.arriving else configure,
            take_down=None if nic.link is None else NetworkInterface.remove_rules,
            movable=True,
            release=_release,
            leave=("its routes", _release),
        )
        if not context.arriving:
            return plan
        # Before it runs here, the host it still runs on leads to it.
        lead = functools.partial(configure, NetworkInterface(plan.interface))
        return attrs.evolve(plan, lead=(Step(name=f"route to {plan.interface}", do=lead),))


def _release(tap: NetworkInterface) -> None:
    """Forget everything that leads to a tap, before it is led to otherwise."""
    tap.switch_off()
    tap.remove_rules()
    for version, name in _PROXIES.items():
        if tap.has_sysctl(version, name):
            tap.sysctl(version, name, 0)


def _lead(addresses: list[IpAddress], link: str | None, parameters: RoutedParameters, tap: NetworkInterface) -> None:
    """Route addresses to a tap."""
    table = None if link is None else table_number(link)
    if link is not None and table is None:
        raise HostError(f"no routing table is called {link!r}", code="no-such-table")
    proxies = {4: parameters.proxy_arp, 6: parameters.proxy_ndp}
    versions = sorted({address.version for address in addresses})
    tap.bring_up()
    if link is not None:
        # Left over by a host application that was killed.
        tap.remove_rules()
    for version in versions:
        tap.sysctl(version, "forwarding", 1)
        tap.sysctl(version, _PROXIES[version], int(proxies[version]))
        if version == 6 and tap.has_sysctl(6, "force_forwarding"):
            # The setting above makes a router of it; since Linux 6.17 this is what forwards on one interface only.
            tap.sysctl(6, "force_forwarding", 1)
        if table is not None:
            tap.add_rules(version, table)
    for address in addresses:
        tap.add_route(address, table)


def _addresses(nic: Nic, parameters: RoutedParameters) -> list[IpAddress]:
    return [ipaddress.ip_address(text) for text in (nic.ip or "", *parameters.addresses)]


def _versions(nic: Nic, parameters: RoutedParameters) -> set[int]:
    return {address.version for address in _addresses(nic, parameters)}


def _is_host(address: IpAddress) -> bool:
    if address.version == 4 and address == ipaddress.IPv4Address("255.255.255.255"):
        return False
    scoped = isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None
    return not (address.is_multicast or address.is_unspecified or address.is_loopback or scoped)


def _check_table(link: str) -> Iterator[Finding]:
    hint = 'a name of /etc/iproute2/rt_tables, or a number such as "100"; none for the main table'
    if link.isascii() and link.isdigit():
        if len(link) > 10 or not 1 <= int(link) < 2**32:
            message = f"{link[:40]} is no routing table from 1 to {2**32 - 1}"
            yield Finding(code="invalid-value", path="link", message=message, hint=hint)
        elif int(link) == _LOCAL:
            message = f"routing table {_LOCAL} is for the host's own addresses"
            yield Finding(code="invalid-value", path="link", message=message, hint=hint)
    elif not link or len(link) > 64 or not link.isprintable() or not link.isascii() or set(link) & set(" /#"):
        yield Finding(code="invalid-value", path="link", message=f"{link[:40]!r} is no routing table", hint=hint)
    elif link == "local":
        message = "routing table local is for the host's own addresses"
        yield Finding(code="invalid-value", path="link", message=message, hint=hint)


def table_number(link: str) -> int | None:
    """Number of a routing table that is given by number or name; ``None`` for a name nobody has given."""
    return int(link) if link.isdigit() else _table_names().get(link)


def _table_names() -> dict[str, int]:
    names = dict(_TABLES)
    for pattern in _TABLE_FILES:
        for path in sorted(glob.glob(pattern)):
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    number, *rest = line.partition("#")[0].split() or [""]
                    with contextlib.suppress(ValueError):
                        if len(rest) == 1 and 0 < int(number, 0) < 2**32:
                            names[rest[0]] = int(number, 0)
    return names


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="routed",
        summary="A tap of its own, to which the host routes the guest's addresses.",
        backend=RoutedNetwork(),
        parameters=RoutedParameters,
    )
