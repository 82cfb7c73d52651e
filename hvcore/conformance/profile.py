"""What the suite has to know about one driver: what it can run, and what can be done to it from outside.

A driver offers its profile in the entry-point group ``hvcore.conformance_profiles`` under its own name: a function that
takes options, a mapping from text to text, and returns a `ConformanceProfile`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any, Protocol

import attrs

from hvcore.conformance.family import FamilySuite
from hvcore.driver import Driver
from hvcore.errors import LoadError
from hvcore.findings import Finding, FindingSet
from hvcore.model.instance import Disk, Instance
from hvcore.model.migration import MigrationTarget

PROFILE_GROUP = "hvcore.conformance_profiles"

Provoke = Callable[[Driver, str], None]
"""Makes something happen to the instance of this name, and returns when it has happened."""


class ConsoleClient(Protocol):
    """Somebody who has connected to a console from outside."""

    def wait_attached(self) -> bool:
        """Return when it is attached, not only in line; or false, when that takes too long."""

    def wait_detached(self) -> bool:
        """Return when it was made to go; or false, when that takes too long."""

    def close(self) -> None:
        """Go."""


@attrs.frozen(kw_only=True)
class PasswordConsole:
    """An instance with a console that takes a password.

    Attributes:
        instance: its definition.
        kind: the console type.
        secret: the password it is started with.
    """

    instance: Instance
    kind: str
    secret: str


@attrs.frozen(kw_only=True)
class LiveParameter:
    """A parameter that changes while the guest runs.

    Attributes:
        name: its name.
        value: a value that no definition of the profile has.
        read: the value it has in the hypervisor, not by asking the driver.
    """

    name: str
    value: Any
    read: Callable[[Driver, str], object]


@attrs.frozen(kw_only=True)
class EarlyMigration:
    """A migration in which the guest goes over before all of its memory has (post-copy).

    Attributes:
        definition: makes a definition of which that is possible; takes a name and a directory for files it needs.
        policy: as for `ConformanceProfile.migration`; with it a guest that is busy goes over early.
        make_busy: the guest changes its memory faster than it is sent from now on.
    """

    definition: Callable[[str, str], Instance]
    policy: Mapping[str, Any]
    make_busy: Provoke


@attrs.frozen(kw_only=True)
class FailingTarget:
    """Where a backup can go until it no longer can.

    Attributes:
        target: what `backup_instance` is given for it.
        faults: what makes the target fail from then on, by what it is then, such as ``full`` and ``gone``.
    """

    target: str
    faults: Mapping[str, Callable[[], None]]


@attrs.frozen(kw_only=True)
class EncryptedDisk:
    """A disk that is encrypted where it is stored, with a secret in a file.

    Attributes:
        disk: the disk, with an image.
        secret_file: the file, which the definition names; the driver reads it when it starts or accepts an instance.
        opens: what its image holds now, by its path, for somebody who has a secret; ``None`` with a wrong one.
    """

    disk: Disk
    secret_file: str
    opens: Callable[[bytes], bytes | None]


WriteFromAfar = Callable[[int, bytes], bool]
"""Writes bytes to a place of a disk from another host; says whether that was taken."""


@attrs.frozen(kw_only=True)
class ConformanceProfile:
    """How to test one driver.

    What is ``None`` cannot be done on this host; the checks that need it are not run, and the verdict is at best
    partial. What does not exist with this hypervisor at all is named in ``absent``. The functions look and act from
    outside: of the driver they get they may use the directories alone, also when it has been closed.

    Attributes:
        driver: name of the driver.
        definition: makes a definition that this host can run; takes a name and a directory for files it needs.
        lives: says, not by asking the driver, whether a hypervisor process of an instance lives.
        settings: settings to load the driver with, besides the directories.
        missing: why this host cannot run instances of the driver at all; empty when it can.
        wait_ready: returns when the guest of a started instance heeds the power button.
        resources: everything outside the driver's directories that instances hold on the host, each as a text.
        guest_powers_off: the guest powers itself off.
        guest_panics: the guest's kernel panics, and the hypervisor process ends.
        kill: the hypervisor process is killed without a last word.
        hang: the hypervisor process answers nothing any more, and lives.
        answer_again: a hung process answers again.
        deafen: the guest, which is ready, no longer heeds the power button.
        damage_records: every record that the driver keeps of a running instance becomes unreadable.
        times_asked: how often the guest of a live instance was asked to power off.
        argv: the argument list of the live hypervisor process.
        restarts: how often the driver has asked for a restart of the host; only where asking restarts nothing.
        unstartable: makes a definition that passes all checks and whose hypervisor process ends before it is ready.
        unwilling: makes a definition whose guest gives nothing back when it is asked: no device before ``lets_go``, and
            no memory.
        lets_go: the guest of such a definition lets go of every device that it was asked for.
        holds: says whether the hypervisor process of an instance has a file open.
        unreadable: makes, in a directory, a disk that passes all checks and that the hypervisor refuses to open, and
            words of its refusal.
        live: a parameter that changes while the guest runs.
        attach: connects to the first console of an instance, which takes one client at a time.
        password: makes a definition with a console that takes a password.
        identity: the system UUID and the hardware addresses that the hypervisor shows to its guest, in lower case.
        impostor: kills the hypervisor process and lets another one have its process id, as far as the records of the
            driver go; yields what says whether that one lives, and puts it away.
        host_restarts: makes of the directories and processes what a restart of the host makes of them, for an
            instance that runs.
        guest_writes: the guest of a running instance has written bytes of one value to a disk; takes driver, name, uuid
            of the disk, offset, how many bytes, and the value.
        failing_target: makes, in a directory, a target for a backup of one disk of so many bytes that can be made to
            fail, and puts it away.
        migration: policy for a migration to the second host of the checks, the same driver on other directories
            of this host, reached at 127.0.0.1.
        intruder: connects from another host to a disk that is copied to this one, as its source does, and lets go of
            it; takes what `accept_instance` has returned and the uuid of the disk. Who cannot connect cannot write.
        encrypted: makes, in a directory, a disk that is encrypted with a secret and holds some bytes.
        postcopy: how a guest of it goes over early.
        absent: what does not exist with this hypervisor: a field of this record, and the reason.
        families: how the plugins of the driver's families are tested, by the word on the command line.
        member: the plugin of a family that is tested, for the checks of that family; ``None`` for the driver itself.
        probe: asked once of the loaded driver: why this host cannot run the definition; empty when it can.
    """

    driver: str
    definition: Callable[[str, str], Instance]
    lives: Callable[[Driver, str], bool]
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    missing: str = ""
    wait_ready: Provoke | None = None
    resources: Callable[[Driver], frozenset[str]] | None = None
    guest_powers_off: Provoke | None = None
    guest_panics: Provoke | None = None
    kill: Provoke | None = None
    hang: Provoke | None = None
    answer_again: Provoke | None = None
    deafen: Provoke | None = None
    damage_records: Provoke | None = None
    times_asked: Callable[[Driver, str], int] | None = None
    argv: Callable[[Driver, str], tuple[str, ...]] | None = None
    restarts: Callable[[Driver], int] | None = None
    unstartable: Callable[[str, str], Instance] | None = None
    unwilling: Callable[[str, str], Instance] | None = None
    lets_go: Provoke | None = None
    holds: Callable[[Driver, str, str], bool] | None = None
    unreadable: Callable[[str], tuple[Disk, str]] | None = None
    live: LiveParameter | None = None
    attach: Callable[[Driver, str], ConsoleClient] | None = None
    password: Callable[[str, str], PasswordConsole] | None = None
    identity: Callable[[Driver, str], frozenset[str]] | None = None
    impostor: Callable[[Driver, str], AbstractContextManager[Callable[[], bool]]] | None = None
    host_restarts: Provoke | None = None
    guest_writes: Callable[[Driver, str, str, int, int, int], None] | None = None
    failing_target: Callable[[Driver, str, int], AbstractContextManager[FailingTarget]] | None = None
    migration: Mapping[str, Any] | None = None
    intruder: Callable[[MigrationTarget, str], AbstractContextManager[WriteFromAfar]] | None = None
    encrypted: Callable[[str, bytes, bytes], EncryptedDisk] | None = None
    postcopy: EarlyMigration | None = None
    absent: Mapping[str, str] = attrs.field(factory=dict)
    families: Mapping[str, FamilySuite] = attrs.field(factory=dict)
    member: Any = None
    probe: Callable[[Driver], str] | None = None


def load_profile(name: str, options: Mapping[str, str] | None = None) -> ConformanceProfile:
    """The profile of a driver.

    Args:
        name: name of the driver.
        options: options of the profile.

    Raises:
        LoadError: there is none, there are two, or it cannot be made.
    """
    found = list(metadata.entry_points(group=PROFILE_GROUP, name=name))
    if len(found) != 1:
        known = ", ".join(sorted({point.name for point in metadata.entry_points(group=PROFILE_GROUP)})) or "none"
        message = "has no conformance profile" if not found else "has two conformance profiles"
        finding = Finding(code="no-profile", path=name, message=message, hint=f"there are profiles for: {known}")
        raise LoadError(f"driver {name} cannot be tested", FindingSet([finding]))
    try:
        profile = found[0].load()(dict(options or {}))
    except Exception as error:
        message = f"{found[0].value} cannot be made: {type(error).__name__}: {error}"
        finding = Finding(code="broken-plugin", path=name, message=message)
        raise LoadError(f"the conformance profile of {name} is broken", FindingSet([finding])) from error
    if not isinstance(profile, ConformanceProfile):
        finding = Finding(code="broken-plugin", path=name, message=f"{found[0].value} made {type(profile).__name__}")
        raise LoadError(f"the conformance profile of {name} is broken", FindingSet([finding]))
    return profile
