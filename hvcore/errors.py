"""Every error that leaves hvcore or a driver: one tree, stable codes, four outcomes that are never mixed.

::

    HypervisorError                  code, driver, operation, instance, retryable, hint
    ├── Refused                      nothing was touched
    │   ├── InvalidParameters        findings: everything that is wrong with the input
    │   ├── InstanceNotFound
    │   ├── AlreadyRunning
    │   ├── NotRunning
    │   ├── WrongState
    │   ├── InstanceBusy             another operation holds the instance; retryable
    │   ├── UnsupportedOperation     the driver does not claim the capability
    │   ├── PolicyDenied             an extension said no
    │   ├── HostError                the host lacks something or cannot be read
    │   └── LoadError                findings: everything that is wrong with a plugin
    ├── HypervisorRefused            the hypervisor understood and said no, in its own words
    ├── OperationFailed              it was begun, failed, and was undone
    │   ├── SpawnFailed              the hypervisor process ended before it was ready
    │   └── DeadlineExceeded         not done in time; retryable
    ├── OutcomeUnknown               the request left, no answer came: look before you act
    ├── RecordError                  state on disk cannot be read or written
    └── DriverFault                  a plugin broke its contract
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from hvcore.findings import FindingSet


class HypervisorError(Exception):
    """Base of all errors of hvcore and its drivers.

    Args:
        message: what was wrong and where, in one sentence without a final stop.
        hint: what the reader can do about it.
        code: stable machine-readable code; each class has one, an instance may be more specific.
        instance: name of the instance it is about; the facade fills it in where a driver did not.

    Attributes:
        driver: name of the driver, filled in by the facade.
        operation: name of the operation, filled in by the facade.
        retryable: the same call may succeed later without any change to its input.
    """

    code: str = "hypervisor-error"
    retryable: bool = False
    outcome: ClassVar[str] = "failed"

    def __init__(
        self, message: str, *, hint: str | None = None, code: str | None = None, instance: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.instance = instance
        self.driver: str | None = None
        self.operation: str | None = None
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        where = f"instance {self.instance}: " if self.instance else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the undo that followed found, and where the instance is then, in order."""
        return tuple(getattr(self, "__notes__", ()))

    def as_dict(self) -> dict[str, object]:
        """The error as plain data, for JSON output and audit logs."""
        return {
            "code": self.code,
            "type": type(self).__name__,
            "outcome": self.outcome,
            "message": self.message,
            "hint": self.hint,
            "driver": self.driver,
            "operation": self.operation,
            "instance": self.instance,
            "retryable": self.retryable,
            "notes": list(self.notes),
        }


class Refused(HypervisorError):
    """Refused before anything happened: the host is exactly as it was."""

    code = "refused"
    outcome = "refused"


class _WithFindings(Refused):
    def __init__(
        self, message: str, findings: FindingSet, *, hint: str | None = None, instance: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, instance=instance)
        self.findings = findings

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  - {finding}" for finding in self.findings)])

    def as_dict(self) -> dict[str, object]:
        return {**super().as_dict(), "findings": [finding.as_dict() for finding in self.findings]}


class InvalidParameters(_WithFindings):
    """The input is wrong; ``findings`` holds everything that is wrong with it."""

    code = "invalid-parameters"


class InstanceNotFound(Refused):
    """The driver has no account of an instance of that name."""

    code = "instance-not-found"


class AlreadyRunning(Refused):
    """A process of this instance is alive."""

    code = "already-running"


class NotRunning(Refused):
    """The operation needs a live instance, and it is not alive."""

    code = "not-running"


class WrongState(Refused):
    """The instance is alive, but in a state in which the operation makes no sense."""

    code = "wrong-state"


class InstanceBusy(Refused):
    """Another operation holds the instance; the message names it, its process and since when."""

    code = "instance-busy"
    retryable = True


class UnsupportedOperation(Refused):
    """The driver does not claim the capability that the operation needs."""

    code = "unsupported-operation"


class PolicyDenied(Refused):
    """An extension refused the operation."""

    code = "policy-denied"


class HostError(Refused):
    """The host lacks something, or something of it cannot be read."""

    code = "host-error"


class LoadError(_WithFindings):
    """A driver or extension cannot be loaded; ``findings`` holds everything that is wrong with it."""

    code = "load-error"


class HypervisorRefused(HypervisorError):
    """The hypervisor understood the request and refused it.

    Attributes:
        request: what was asked, for example a QMP command name.
        error_class: the hypervisor's own class of error, for example ``GenericError``.
        text: the hypervisor's own words.
    """

    code = "hypervisor-refused"
    outcome = "refused-by-hypervisor"

    def __init__(
        self,
        request: str,
        error_class: str,
        text: str,
        *,
        hint: str | None = None,
        instance: str | None = None,
    ) -> None:
        super().__init__(f"the hypervisor refused {request}: {text}", hint=hint, instance=instance)
        self.request = request
        self.error_class = error_class
        self.text = text


class OperationFailed(HypervisorError):
    """The operation was begun, failed, and what it had done was undone."""

    code = "operation-failed"
    outcome = "failed-and-undone"


class SpawnFailed(OperationFailed):
    """The hypervisor process ended before it was ready.

    Attributes:
        exit_status: its exit status, negative for a signal, ``None`` if nobody could tell.
        output: the tail of what it printed.
    """

    code = "spawn-failed"

    def __init__(
        self,
        message: str,
        *,
        exit_status: int | None = None,
        output: str = "",
        hint: str | None = None,
        instance: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, instance=instance)
        self.exit_status = exit_status
        self.output = output


class DeadlineExceeded(OperationFailed):
    """It was not done in time; what the operation had begun was undone, or waits as its message says."""

    code = "deadline-exceeded"
    retryable = True


class OutcomeUnknown(HypervisorError):
    """The request left and no answer came: it may have happened. Look before you act."""

    code = "outcome-unknown"
    outcome = "unknown"


class RecordError(HypervisorError):
    """A state file cannot be read, written or understood; the message names it."""

    code = "record-error"


class DriverFault(HypervisorError):
    """A plugin broke its contract: a foreign exception, no result, or a result of the wrong type."""

    code = "driver-fault"
