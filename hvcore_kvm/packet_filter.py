"""What a guest may send by a tap, and how much goes through it: rules of nftables and a queue of the kernel's.

The rules stand in tables that have the tap's name, and outlive the tap; the queue towards the guest does not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterable, Iterator

from hvcore import Finding, HostError
from hvcore_kvm.host_command import run_command
from hvcore_kvm.interface import NetworkInterface

_NFT = ("/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft")
_TC = ("/usr/sbin/tc", "/sbin/tc", "/usr/local/sbin/tc")
_PATIENCE = 10.0
_LATENCY = "50ms"
_NO_ADDRESS = str(ipaddress.IPv4Address(0))
_LEAST_BURST = 128 * 1024
"""What may go through at once: more than the largest packet that offloads make, which else would never."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def limit_bandwidth(tap: NetworkInterface, rate: int) -> None:
    """Let no more through, in each direction, than some bytes a second: queue to the guest, drop what is too much.

    Raises:
        HostError: the kernel refused.
    """
    burst = _burst(rate)
    shape = ("qdisc", "replace", "dev", tap.name, "root", "tbf", "rate", f"{rate}bps")
    run_command((_program(_TC), *shape, "burst", str(burst), "latency", _LATENCY), timeout=_PATIENCE)
    _nft(_limit(tap.name, rate))


def lift_limit(tap: NetworkInterface) -> None:
    """Let through as much as there is again; the tap need not have been limited. Its rules are another matter."""
    with contextlib.suppress(HostError):
        run_command((_program(_TC), "qdisc", "delete", "dev", tap.name, "root"), timeout=_PATIENCE)


def allow_sources(tap: NetworkInterface, mac: str, addresses: Iterable[str]) -> None:
    """Let a guest send into a bridge only as itself: with its hardware address and, if any are given, its addresses.

    Raises:
        HostError: the kernel refused.
    """
    _nft(_sources(tap.name, mac, addresses))


def remove_rules(tap: NetworkInterface) -> None:
    """Remove all of a tap's rules; it need not be there, nor need they.

    Raises:
        HostError: the kernel refused.
    """
    _nft("; ".join(_without(family, tap.name) for family in ("netdev", "bridge")))


def check_bandwidth() -> Iterator[Finding]:
    """What the host lacks to limit the bandwidth of a tap."""
    path = "params.bandwidth_limit"
    if _program(_TC) == "":
        message = "the program tc is not installed"
        yield Finding(code="no-program", path=path, message=message, hint="apt-get install iproute2")
    # Which interface makes no difference to what the kernel knows.
    yield from _check(_limit("lo", 1 << 20), path)


def check_sources() -> Iterator[Finding]:
    """What the host lacks to hold a guest to its addresses."""
    yield from _check(_sources("hv", "52:54:00:00:00:01", ("192.0.2.1", "2001:db8::1")), "params.anti_spoof")


def _check(rules: str, path: str) -> Iterator[Finding]:
    if _program(_NFT) == "":
        message = "the program nft is not installed"
        yield Finding(code="no-program", path=path, message=message, hint="apt-get install nftables")
        return
    if os.geteuid() != 0:
        return
    try:
        run_command((_program(_NFT), "--check", rules), timeout=_PATIENCE)
    except HostError as error:
        message = f"the kernel does not take the rules: {error.message[-300:]}"
        yield Finding(code="no-packet-filter", path=path, message=message, hint="modprobe nf_tables")


def _limit(tap: str, rate: int) -> str:
    chain = f'chain netdev {tap} ingress {{ type filter hook ingress device "{tap}" priority 0; policy accept; }}'
    rule = f"limit rate over {rate} bytes/second burst {_burst(rate)} bytes counter drop"
    return f"{_anew('netdev', tap)}; add {chain}; add rule netdev {tap} ingress {rule}"


def _sources(tap: str, mac: str, addresses: Iterable[str]) -> str:
    chain = f"chain bridge {tap} sources {{ type filter hook prerouting priority -300; policy accept; }}"
    rules = [f'iifname != "{tap}" accept', f"ether saddr != {mac} counter drop"]
    rules += [f"ether type arp arp saddr ether != {mac} counter drop"]
    given = [ipaddress.ip_address(address) for address in addresses]
    if given:
        rules += _only(given)
    return "; ".join(
        [_anew("bridge", tap), f"add {chain}", *(f"add rule bridge {tap} sources {rule}" for rule in rules)]
    )


def _only(addresses: list[IpAddress]) -> list[str]:
    """Rules by which nothing goes out but what says that it comes from one of these addresses."""
    four = [str(address) for address in addresses if address.version == 4]
    six = [address for address in addresses if address.version == 6]
    # An address that is only about to be used is asked for from no address.
    rules = [
        f"ether type arp arp saddr ip {{ {', '.join([_NO_ADDRESS, *four])} }} accept",
        f"ether type ip ip saddr {_NO_ADDRESS} udp sport 68 udp dport 67 accept",
    ]
    if four:
        rules.append(f"ether type ip ip saddr {{ {', '.join(four)} }} accept")
    # Who advertises a neighbour must be it: its address stands 64 bits into the message. fe80::/10 is of the link.
    foreign = [f"@th,64,128 != {int(address):#x}" for address in six]
    rules.append(" ".join(["icmpv6 type nd-neighbor-advert", *foreign, "@th,64,10 != 0x3fa counter drop"]))
    rules.append(f"ether type ip6 ip6 saddr {{ {', '.join(['::', 'fe80::/10', *map(str, six)])} }} accept")
    return [*rules, "counter drop"]


def _burst(rate: int) -> int:
    return max(rate // 20, _LEAST_BURST)


def _without(family: str, name: str) -> str:
    # Older programs have no word for "delete if it is there".
    return f"add table {family} {name}; delete table {family} {name}"


def _anew(family: str, name: str) -> str:
    return f"{_without(family, name)}; add table {family} {name}"


def _nft(rules: str) -> None:
    run_command((_program(_NFT), rules), timeout=_PATIENCE)


def _program(paths: Iterable[str]) -> str:
    return next((path for path in paths if os.access(path, os.X_OK)), "")
