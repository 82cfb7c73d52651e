"""Counting what a test may leak: descriptors, threads, child processes, and what the profile can count."""

from __future__ import annotations

import contextlib
import gc
import os
import threading

import attrs

from hvcore.conformance.profile import ConformanceProfile
from hvcore.driver import Driver


@attrs.frozen(kw_only=True)
class Census:
    """What this process holds.

    Attributes:
        descriptors: open file descriptors, and what each is.
        threads: names of its threads.
        children: child processes that are no zombies.
        resources: what the profile counts.
    """

    descriptors: dict[int, str]
    threads: frozenset[str]
    children: frozenset[int]
    resources: frozenset[str]

    def grown(self, later: Census) -> list[str]:
        """What a later census has more, in words."""
        descriptors = {fd: what for fd, what in later.descriptors.items() if self.descriptors.get(fd) != what}
        found = [f"descriptor {fd} is left open: {what}" for fd, what in descriptors.items()]
        found = found if len(later.descriptors) > len(self.descriptors) else []
        found += [f"thread {name} is left" for name in sorted(later.threads - self.threads)]
        found += [f"child process {pid} is left" for pid in sorted(later.children - self.children)]
        found += [f"{resource} is left" for resource in sorted(later.resources - self.resources)]
        return found


def take_census(driver: Driver | None, profile: ConformanceProfile) -> Census:
    """Count; what only waits to be collected is collected first."""
    gc.collect()
    counted = profile.resources(driver) if profile.resources is not None and driver is not None else frozenset()
    return Census(
        descriptors=_descriptors(),
        threads=frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate()),
        children=frozenset(_children()),
        resources=counted,
    )


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        # The one that lists is gone by now.
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return found


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{entry}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if int(parent) == os.getpid() and state != b"Z":
                found.append(int(entry))
    return found
