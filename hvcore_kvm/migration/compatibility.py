"""Whether an instance can move between two versions of QEMU; pure."""

from __future__ import annotations

import re

from hvcore import MigrationCompatibility
from hvcore_kvm.capabilities import MINIMUM_VERSION

_VERSION = re.compile(r"(?<![\d.])(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?![\d.])")


def compare_versions(source: str, destination: str) -> MigrationCompatibility:
    """Say whether an instance can move between two versions of QEMU.

    The machine type is versioned and stays as it is, so newer ones take what older ones send; the other way round,
    QEMU promises nothing and it works as long as the older one knows the machine type.

    Args:
        source: version on the source host, such as ``7.2.22`` or ``QEMU 7.2.22``.
        destination: version on the destination host.
    """
    found = []
    for side, text in (("source", source), ("destination", destination)):
        match = _VERSION.search(text[:200])
        if match is None:
            return MigrationCompatibility(safe=False, reason=f"the {side}'s version is not known: {text[:60]!r}")
        version = tuple(int(part or 0) for part in match.groups())
        if version < MINIMUM_VERSION:
            oldest = ".".join(map(str, MINIMUM_VERSION))
            return MigrationCompatibility(
                safe=False, reason=f"the {side} has QEMU {match[0]}; {oldest} or newer is needed"
            )
        found.append(version)
    here, there = found
    if there[:2] < here[:2]:
        return MigrationCompatibility(
            safe=True,
            reason="to an older QEMU: it has to know the machine type and the CPU features, which is checked",
        )
    if there[:2] > here[:2]:
        return MigrationCompatibility(safe=True, reason="to a newer QEMU: the way back may not be open")
    return MigrationCompatibility(safe=True)
