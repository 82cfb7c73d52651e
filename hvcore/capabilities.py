"""What a driver claims to be able to do. The facade refuses what is not claimed; conformance checks the claims."""

from __future__ import annotations

import enum

import attrs


class Capability(enum.StrEnum):
    """One thing a driver may be able to do. What every driver must do has no capability."""

    PLAN = "plan"
    START_PAUSED = "start-paused"
    GRACEFUL_STOP = "graceful-stop"
    REBOOT = "reboot"
    RESET = "reset"
    PAUSE = "pause"
    SAVE_RESTORE = "save-restore"
    BACKUP = "backup"
    BACKUP_COMPRESSION = "backup-compression"
    RECOVER = "recover"
    LIST_INTERRUPTED = "list-interrupted"
    SNAPSHOT = "snapshot"
    SNAPSHOT_EXTERNAL = "snapshot-external"
    STATS = "stats"
    VERIFY_INSTANCE = "verify-instance"
    HOTPLUG = "hotplug"
    RESIZE_DISK = "resize-disk"
    BALLOON = "balloon"
    CONSOLE = "console"
    CONSOLE_PASSWORD = "console-password"  # noqa: S105 - a name, not a password
    CONSOLE_DISCONNECT = "console-disconnect"
    SCREENSHOT = "screenshot"
    MIGRATION = "migration"
    MIGRATION_STEPS = "migration-steps"
    MIGRATION_DISKS = "migration-disks"
    POWERCYCLE = "powercycle"
    ANCILLARY_FILES = "ancillary-files"
    EVENTS = "events"


class ClaimLevel(enum.StrEnum):
    """How far a capability goes."""

    FULL = "full"
    CONDITIONAL = "conditional"
    NOT_IMPLEMENTED = "not-implemented"
    IMPOSSIBLE = "impossible"

    @property
    def breadth(self) -> int:
        """How much is offered: 2 for all, 1 under a condition, 0 for nothing."""
        return {ClaimLevel.FULL: 2, ClaimLevel.CONDITIONAL: 1}.get(self, 0)


@attrs.frozen(kw_only=True)
class Claim:
    """What a driver says about one capability.

    Attributes:
        capability: which.
        level: how far; a probe of the host may only narrow it.
        reason: the condition, or why not.
    """

    capability: Capability
    level: ClaimLevel = ClaimLevel.FULL
    reason: str = ""

    @property
    def offered(self) -> bool:
        """The operation may be called."""
        return self.level in (ClaimLevel.FULL, ClaimLevel.CONDITIONAL)

    def narrowed(self, level: ClaimLevel, reason: str) -> Claim:
        """The claim after a probe of the host, which may only take away.

        Args:
            level: what is left of it here.
            reason: what the probe found.

        Raises:
            ValueError: that would be more than was claimed.
        """
        if level.breadth > self.level.breadth:
            raise ValueError(f"a probe cannot widen {self.capability.value} from {self.level.value} to {level.value}")
        return Claim(capability=self.capability, level=level, reason=reason)


@attrs.frozen(kw_only=True)
class DriverDescription:
    """What a driver says of itself.

    Attributes:
        name: the name it is loaded by.
        version: its own version.
        hook_api: version of the hook specifications it was written for.
        summary: one sentence.
        claims: what it can do on this host; a capability it does not mention is not implemented. A driver that
            probes the host also has an attribute ``claims``, what it can do where nothing is lacking; the audit
            holds the two together.
        hypervisor: name and version of what it drives on this host, for example ``QEMU 7.2.22``; empty if unknown.
    """

    name: str
    version: str
    hook_api: int
    summary: str
    claims: tuple[Claim, ...] = ()
    hypervisor: str = ""

    def claim(self, capability: Capability) -> Claim:
        """The claim for one capability; not implemented if the driver does not mention it."""
        for claim in self.claims:
            if claim.capability is capability:
                return claim
        return Claim(capability=capability, level=ClaimLevel.NOT_IMPLEMENTED, reason="the driver does not claim it")
