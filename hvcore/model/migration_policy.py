"""How an instance should be moved to another host, as its owner wants it; the same record is given to both sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from hvcore.findings import Finding
from hvcore.model.names import check_host_name, check_uuid
from hvcore.model.units import Seconds, Size, parse_seconds, parse_size
from hvcore.params.checks import absolute_path, at_least, between, no_control_characters
from hvcore.params.declare import param

LONGEST_DOWNTIME = 2000.0
"""Seconds; the longest pause that QEMU accepts as a limit."""

ALL_DISKS = "all"
"""In ``copy_disks``: every disk that the guest may write and whose image is a file or device of the host."""

_MIB = 2**20
_PATIENCE = 60.0
_DOWNTIME = 10.0


def _size(value: Any) -> Any:
    return _parsed(parse_size, value)


def _seconds(value: Any) -> Any:
    return _parsed(parse_seconds, value)


def _parsed(parse: Any, value: Any) -> Any:
    """Text that can be read becomes a number; anything else stays for the check to report."""
    if isinstance(value, str):
        try:
            return parse(value)
        except ValueError:
            return value
    return value


def tls_of(value: Any) -> Any:
    """``False`` and ``True`` stand for no TLS, and for TLS with everything as usual."""
    return MigrationTls() if value is True else None if value is False else value


def disks_of(value: Any) -> Any:
    """A single word, such as ``"all"``, stands for a list of it."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _a_disk(value: str) -> str | None:
    problem = None if value == ALL_DISKS else check_uuid(value)
    return f"{problem}, nor {ALL_DISKS!r}" if problem else None


def _whole_mib(value: int) -> str | None:
    return f"{value} bytes a second is not a whole number of MiB" if value % _MIB else None


def _fits_downtime(value: float) -> str | None:
    return None if 0 < value <= LONGEST_DOWNTIME else f"{value:g} s is not above 0 and at most {LONGEST_DOWNTIME:g} s"


def _above_nothing(value: float) -> str | None:
    return None if value > 0 else f"{value:g} s is not above 0"


@attrs.frozen(kw_only=True)
class MigrationTls:
    """Mutual TLS: both sides show a certificate of the same authority (X.509)."""

    directory: str = param(
        default="/etc/pki/qemu",
        checks=(absolute_path,),
        summary="Directory on each host with ca-cert.pem and, on the destination, server-cert.pem and server-key.pem, "
        "on the source, client-cert.pem and client-key.pem.",
    )
    hostname: str | None = param(
        default=None,
        checks=(check_host_name,),
        summary="Name that the destination's certificate must carry; the address it is reached at when not given.",
    )
    authz: str | None = param(
        default=None,
        checks=(no_control_characters,),
        summary="Distinguished name that the source's certificate must carry; any of the authority when not given.",
    )


@attrs.frozen(kw_only=True)
class MultiFd:
    """Memory is sent over several connections side by side."""

    channels: int = param(default=2, checks=(between(1, 255),), summary="Connections.")
    compression: str = param(
        default="none", choices=("none", "zlib", "zstd"), summary="How what is sent over them is compressed."
    )


@attrs.frozen(kw_only=True)
class PostCopy:
    """The guest goes over before all of its memory has, and fetches the rest as it needs it.

    From then on it lives on both hosts: when one of them or the network between them fails, it is lost.
    """

    after_passes: int | None = param(
        default=None,
        checks=(at_least(1),),
        summary="Begin once its memory has been gone through so many times; when not given, once it does not converge.",
    )
    preempt: bool = param(
        default=False, summary="What the guest waits for overtakes the rest, on a connection of its own."
    )


@attrs.frozen(kw_only=True)
class AutoConverge:
    """The guest's virtual CPUs are slowed down until its memory changes more slowly than it is sent."""

    initial: int = param(
        default=20, unit="percent", checks=(between(1, 99),), summary="How much they are slowed down at first."
    )
    increment: int = param(
        default=10, unit="percent", checks=(between(1, 99),), summary="How much more each time that is not enough."
    )
    maximum: int = param(default=99, unit="percent", checks=(between(1, 99),), summary="How much at most.")


@attrs.frozen(kw_only=True)
class MigrationPolicy:
    """How a migration should go, and what to do when it does not converge.

    Sizes are bytes and times are seconds. The record takes text for them (``"100MiB"``, ``"30s"``) and checks nothing;
    `hvcore.read_migration_policy` does, and finds everything at once.
    """

    live: bool = param(default=True, summary="The guest keeps running while its memory is copied.")
    first_port: int = param(
        default=49152, checks=(between(1, 65535),), summary="First of the ports that the destination may listen on."
    )
    last_port: int = param(default=49215, checks=(between(1, 65535),), summary="Last of these ports.")
    tls: MigrationTls | None = param(
        factory=MigrationTls,
        converter=tls_of,
        summary="Mutual TLS; without it, whoever is on the way reads and changes the guest's memory. Off is said by "
        "false, or None.",
    )
    max_bandwidth: Size | None = param(
        default=None,
        unit="bytes a second",
        checks=(at_least(1),),
        converter=_size,
        summary="Most that is sent; no limit when not given.",
    )
    downtime_limit: Seconds = param(
        default=Seconds(0.3),
        unit="seconds",
        checks=(_fits_downtime,),
        converter=_seconds,
        summary="Longest pause of the guest that is aimed at.",
    )
    deadline: Seconds | None = param(
        default=None,
        unit="seconds",
        checks=(_above_nothing,),
        converter=_seconds,
        summary="How long all of it may take; then it is cancelled, unless the guest has gone over. No limit when not "
        "given.",
    )
    converge_within: Seconds | None = param(
        default=None,
        unit="seconds",
        checks=(_above_nothing,),
        converter=_seconds,
        summary="After how long it is taken not to converge; a minute, or half of deadline where that is less, when "
        "not given.",
    )
    on_no_convergence: str = param(
        default="raise-downtime",
        choices=("raise-downtime", "throttle", "postcopy", "cancel"),
        summary="What is done then: the limit of the pause is raised up to downtime_maximum, the guest is slowed down "
        "(auto_converge, which QEMU does by itself and from the beginning), it goes over (postcopy), or the migration "
        "is cancelled.",
    )
    downtime_maximum: Seconds | None = param(
        default=None,
        unit="seconds",
        checks=(_fits_downtime,),
        converter=_seconds,
        summary="Longest pause of the guest that raise-downtime may come to; 10 s, or downtime_limit where that is "
        "more, when not given.",
    )
    auto_converge: AutoConverge | None = param(
        default=None,
        summary="Slow the guest down; with on_no_convergence throttle it is done whether or not this is given.",
    )
    postcopy: PostCopy | None = param(
        default=None,
        summary="Let the guest go over early; with on_no_convergence postcopy it is done whether or not this is given. "
        "Never when not given.",
    )
    dirty_limit: Size | None = param(
        default=None,
        unit="bytes a second",
        checks=(at_least(_MIB), _whole_mib),
        converter=_size,
        summary="Most memory that each virtual CPU may change, in whole MiB a second (QEMU 8.1 and newer, with KVM's "
        "dirty ring).",
    )
    multifd: MultiFd | None = param(default=None, summary="Several connections side by side; one when not given.")
    zero_copy: bool = param(
        default=False, summary="Send without copying first; needs multifd, neither TLS nor compression, locked memory."
    )
    switchover: str = param(
        default="immediate",
        choices=("immediate", "ack", "paused"),
        summary="When the guest goes over: at once, when the destination's devices are ready too (QEMU 8.1 and newer), "
        "or when the caller says so: it is paused until then.",
    )
    copy_disks: tuple[str, ...] = param(
        default=(),
        item_checks=(_a_disk,),
        converter=disks_of,
        summary="Disks that only the source has, by uuid; they are copied to images that the destination makes at the "
        'same paths. "all": every disk that the guest may write and that has a path. None when not given: both hosts '
        "reach all of them. A disk on storage that both hosts reach must not be among them.",
    )
    overwrite_disks: bool = param(
        default=False,
        summary="Copy also to images that are there already on the destination, such as block devices; what is in them "
        "is lost.",
    )

    @property
    def patience(self) -> float:
        """Seconds after which it is taken not to converge."""
        if self.converge_within is not None:
            return self.converge_within
        return _PATIENCE if self.deadline is None else min(_PATIENCE, self.deadline / 2)

    @property
    def longest_downtime(self) -> float:
        """Seconds that the limit of the guest's pause may be raised to."""
        return max(_DOWNTIME, self.downtime_limit) if self.downtime_maximum is None else self.downtime_maximum

    @property
    def throttling(self) -> AutoConverge | None:
        """How the guest is slowed down; ``None`` if it is not."""
        return self.auto_converge or (AutoConverge() if self.on_no_convergence == "throttle" else None)

    @property
    def going_over_early(self) -> PostCopy | None:
        """How post-copy is used; ``None`` if it is not."""
        return self.postcopy or (PostCopy() if self.on_no_convergence == "postcopy" else None)


def policy_rules(policy: MigrationPolicy) -> Iterator[Finding]:
    """What contradicts what in a policy whose fields are right one by one; pure."""
    if policy.last_port < policy.first_port:
        yield _wrong("last_port", f"{policy.last_port} is below first_port, which is {policy.first_port}")
    if policy.longest_downtime < policy.downtime_limit:
        limit = f"{policy.downtime_limit:g} s"
        yield _wrong("downtime_maximum", f"{policy.longest_downtime:g} s is below downtime_limit, which is {limit}")
    if policy.deadline is not None and policy.deadline < policy.patience:
        message = f"{policy.patience:g} s is above deadline, which is {policy.deadline:g} s"
        yield _wrong("converge_within", message, "on_no_convergence would never be done")
    yield from _convergence_rules(policy)
    yield from _channel_rules(policy)
    yield from _disk_rules(policy)


def _convergence_rules(policy: MigrationPolicy) -> Iterator[Finding]:
    throttle, postcopy = policy.throttling, policy.going_over_early
    if throttle is not None and throttle.maximum < throttle.initial:
        message = f"{throttle.maximum} is below initial, which is {throttle.initial}"
        yield _wrong("auto_converge.maximum", message)
    if postcopy is not None and postcopy.after_passes is None and policy.on_no_convergence != "postcopy":
        message = "begins once it does not converge, and on_no_convergence is " + policy.on_no_convergence
        yield _wrong("postcopy", message, 'set on_no_convergence = "postcopy", or after_passes')
    if throttle is not None and policy.dirty_limit is not None:
        yield _wrong("dirty_limit", "slows the guest down in another way than auto_converge", "use one of the two")
    if not policy.live:
        for name in ("auto_converge", "postcopy", "dirty_limit"):
            if getattr(policy, name) is not None:
                yield _wrong(name, "is of a guest that runs while it is copied, and live is false")


def _channel_rules(policy: MigrationPolicy) -> Iterator[Finding]:
    multifd = policy.multifd
    if multifd is not None and policy.going_over_early is not None:
        # QEMU 7.2 takes both, and its destination aborts once the guest has gone over; newer ones refuse it.
        hint = "use one of the two"
        yield _wrong("multifd", "does not go with post-copy: the guest would be lost", hint)
    if policy.zero_copy:
        if multifd is None:
            yield Finding(code="incomplete", path="zero_copy", message="needs multifd")
        elif multifd.compression != "none":
            yield _wrong("zero_copy", f"sends memory as it is, and compression is {multifd.compression}")
        if policy.tls is not None:
            yield _wrong("zero_copy", "sends memory as it is, and TLS encrypts it", "do without one of the two")


def _disk_rules(policy: MigrationPolicy) -> Iterator[Finding]:
    disks = [disk.lower() for disk in policy.copy_disks]
    if ALL_DISKS in disks and len(disks) > 1:
        yield _wrong("copy_disks", f"names other disks beside {ALL_DISKS!r}", "use one of the two")
    elif len(set(disks)) < len(disks):
        yield Finding(code="repeated-value", path="copy_disks", message="names a disk twice")
    if policy.overwrite_disks and not disks:
        yield _wrong("overwrite_disks", "is of disks that are copied, and copy_disks names none")


def _wrong(path: str, message: str, hint: str | None = None) -> Finding:
    return Finding(code="contradiction", path=path, message=message, hint=hint)
