"""Parameters of what an instance may take of the host."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hvcore import Finding, Size, checks, param

_MIB = 2**20


@attrs.frozen(kw_only=True)
class IoLimits:
    """What may be read and written a second on each block device that holds disks of the instance."""

    read_bps: Size | None = param(
        default=None, unit="bytes", checks=(checks.at_least(1),), summary="Bytes read a second."
    )
    write_bps: Size | None = param(
        default=None, unit="bytes", checks=(checks.at_least(1),), summary="Bytes written a second."
    )
    read_iops: int | None = param(default=None, checks=(checks.at_least(1),), summary="Operations a second that read.")
    write_iops: int | None = param(
        default=None, checks=(checks.at_least(1),), summary="Operations a second that write."
    )


@attrs.frozen(kw_only=True)
class ResourceParameters:
    """Limits of QEMU and guest together, kept by the kernel in a control group."""

    cpu_shares: int | None = param(
        default=None,
        checks=(checks.between(2, 262144),),
        summary="Weight against other groups when processors are short; 1024 is that of an ordinary group.",
    )
    cpu_quota: float | None = param(
        default=None,
        checks=(checks.between(0.01, 4096),),
        summary="Processors of the host that it may keep busy; 1.5 is one and a half.",
    )
    memory_limit: Size | None = param(
        default=None,
        unit="bytes",
        checks=(checks.at_least(_MIB),),
        summary="Memory of QEMU and guest together; beyond it the kernel ends QEMU. Leave room for QEMU's own.",
    )
    pids_limit: int | None = param(
        default=None,
        checks=(checks.between(16, 4194304),),
        summary="Threads QEMU may have; security model confined sets one when not given.",
    )
    io_limit: IoLimits | None = param(
        default=None,
        summary="Limits of each block device that holds disks. Unlike params.throttle_groups the kernel keeps them, "
        "also for QEMU itself.",
    )


def resource_rules(given: ResourceParameters) -> Iterator[Finding]:
    """What an empty limit would mean."""
    if given.io_limit == IoLimits():
        yield Finding(code="incomplete", path="io_limit", message="names no limit")
