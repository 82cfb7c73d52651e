"""Starting an instance: a transaction of steps, after which it runs or nothing of the attempt is left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from hvcore import (
    Deadline,
    DeadlineExceeded,
    HypervisorRefused,
    InstanceState,
    Journal,
    OperationFailed,
    RecordError,
    SpawnFailed,
    Step,
    boot_id,
)
from hvcore_kvm import process
from hvcore_kvm.capabilities import qemu_words
from hvcore_kvm.directory import CONTROL, JOURNAL, STDERR, InstanceDirectory
from hvcore_kvm.families import InterfaceEvent
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.qmp import QmpClient, QmpError, QmpRefused, QmpTimeout
from hvcore_kvm.qmp.client import connect_unix
from hvcore_kvm.runtime import (
    HISTORY,
    HISTORY_BEFORE,
    PLACEMENT,
    PROCESS,
    RECORD,
    SCHEMA,
    History,
    Placement,
    ProcessRecord,
    RuntimeRecord,
)

_STDERR_TAIL = 8192
_UNDO_PATIENCE = 15.0


class Launch:
    """One start. Use it once.

    Args:
        plan: what to start.
        directory: the instance's directory; holds nothing.
        start_timeout: seconds QEMU may take until its monitor answers.
        announce: told of network interfaces that have come up.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        directory: InstanceDirectory,
        start_timeout: float,
        announce: Callable[[InterfaceEvent], None],
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._start_timeout = start_timeout
        self._announce = announce
        self._name = plan.decisions.definition.name
        self._pidfd: int | None = None
        self._client: QmpClient | None = None
        self._started = 0.0
        # Read before anything is done: undo puts them back.
        self._old_history: History | None = None
        # A damaged account of an earlier life is no reason not to begin a new one.
        with contextlib.suppress(RecordError):
            self._old_history = directory.read(HISTORY, History, schema=SCHEMA, data=True)
        self._old_placement = directory.read(PLACEMENT, Placement, schema=SCHEMA, data=True)

    @property
    def state_before(self) -> InstanceState | None:
        """What the account of its last life says, if there is one."""
        if self._old_history is None:
            return None
        # One that was never seen to end went down with its host.
        return self._old_history.state or InstanceState.CRASHED

    def run(self, deadline: Deadline) -> None:
        """Start it.

        Raises:
            SpawnFailed: QEMU ended before it was ready; its own words are in the message.
            HypervisorRefused: QEMU refused to run the guest.
            DeadlineExceeded: it was not ready in time.
            HostError: the host refused something.
        """
        self._directory.make()
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self._close)
                if self._old_history is not None:
                    self._directory.write(HISTORY_BEFORE, self._old_history, schema=SCHEMA)
                journal = stack.enter_context(Journal(self._directory.join(JOURNAL), "start"))
                self._steps(journal, deadline, stack)
        except BaseException:
            if not self._directory.tail(JOURNAL, 1):
                self._directory.remove_volatile()
            raise

    def _steps(self, journal: Journal, deadline: Deadline, stack: contextlib.ExitStack) -> None:
        plan = self._plan
        # First: from it, whoever finds an interrupted start knows what to take down.
        self._write_record()
        for step in plan.security.steps:
            journal.run(step)
        for nic, nic_plan in plan.nics:
            for step in nic_plan.up:
                journal.run(step)
            if nic_plan.interface:
                self._announce(
                    InterfaceEvent(instance=self._name, nic=nic.nic, interface=nic_plan.interface, change="up")
                )
        fds: list[int] = []
        try:
            for request in plan.fds:
                fds.append(request.open())
            # Connected before QEMU exists: the greeting arrives the moment its monitor is up, the end of the
            # connection means that it ended. Nothing is polled.
            connection = connect_unix(self._directory.join(CONTROL), deadline)
            self._client = QmpClient(connection)
            journal.run(Step(name="spawn", do=lambda: self._spawn(fds), undo=self._kill))
        finally:
            for fd in fds:
                os.close(fd)
        # While QEMU is coming up, which takes longer.
        journal.run(Step(name="records", do=self._keep_records, undo=self._restore_records))
        self._greet(deadline)
        if not plan.paused:
            journal.run(Step(name="cont", do=lambda: self._cont(deadline)))

    def _spawn(self, fds: list[int]) -> None:
        output = self._directory.append_only(STDERR)
        try:
            self._started = time.time()
            pid = process.spawn(self._plan.argv, fds, output, self._plan.security.launcher)
        finally:
            os.close(output)
        self._pidfd = os.pidfd_open(pid)
        record = ProcessRecord(
            identity=process.identify(pid), started=self._started, qemu=self._plan.decisions.capabilities.path
        )
        self._directory.write(PROCESS, record, schema=SCHEMA)

    def _greet(self, deadline: Deadline) -> None:
        assert self._client is not None  # noqa: S101 - set by the step before
        patience = deadline.sooner(self._start_timeout)
        try:
            self._client.negotiate(patience)
        except QmpError as error:
            raise self._not_ready(error) from error

    def _not_ready(self, error: QmpError) -> OperationFailed:
        assert self._pidfd is not None  # noqa: S101 - set by the step before
        # The monitor closes a moment before the process ends.
        late = isinstance(error, QmpTimeout) or isinstance(error.__cause__, QmpTimeout)
        ended = process.end_of(self._pidfd, Deadline.after(0.0 if late else 2.0))
        output = self._directory.tail(STDERR, _STDERR_TAIL)
        words = qemu_words(output)
        if ended is None:
            return DeadlineExceeded(
                f"QEMU was not ready in time: {error}" + (f"; it said: {words}" if words else ""),
                hint="give it a longer timeout, or look at the load of the host",
            )
        status = ended.status
        how = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
        return SpawnFailed(
            f"QEMU ended at start{how}: {words or 'it said nothing'}",
            exit_status=status,
            output=output,
            hint=_advice(words),
        )

    def _write_record(self) -> None:
        d = self._plan.decisions
        record = RuntimeRecord(
            instance=d.definition.instance,
            machine=d.machine,
            accelerator=d.choice.accelerator.value,
            cpu_model=d.cpu_model,
            qemu_version=d.capabilities.version_text,
        )
        self._directory.write(RECORD, record, schema=SCHEMA)

    def _keep_records(self) -> None:
        d = self._plan.decisions
        if d.placement != self._old_placement:
            self._directory.write(PLACEMENT, d.placement, schema=SCHEMA, data=True)
        history = History(uuid=d.definition.instance.uuid or "", started=self._started, boot_id=boot_id())
        self._directory.write(HISTORY, history, schema=SCHEMA, data=True)

    def _restore_records(self) -> None:
        for name, old in ((HISTORY, self._old_history), (PLACEMENT, self._old_placement)):
            if old is None:
                self._directory.remove(name, data=True)
            else:
                self._directory.write(name, old, schema=SCHEMA, data=True)
        if self._old_history is None and self._old_placement is None:
            self._directory.remove_data_if_empty()

    def _cont(self, deadline: Deadline) -> None:
        assert self._client is not None  # noqa: S101 - set by the step before
        try:
            self._client.execute("cont", deadline=deadline)
        except QmpRefused as error:
            raise HypervisorRefused("cont", error.error_class, error.text) from error
        except QmpTimeout as error:
            raise DeadlineExceeded("QEMU did not let the guest run in time") from error
        except QmpError as error:
            raise self._not_ready(error) from error

    def _kill(self) -> None:
        if self._pidfd is not None and not process.end(self._pidfd, Deadline.after(_UNDO_PATIENCE)):
            raise OperationFailed("QEMU does not end", code="process-stuck")

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _advice(words: str) -> str | None:
    for text, advice in _ADVICE:
        if text in words:
            return advice
    return None


_ADVICE = (
    ("failed to set MSR", 'this KVM lacks what CPU model host needs: try cpu_features = {"arch-capabilities" = false}'),
    ('Failed to get "write" lock', "another process has the image open"),
    ("Could not access KVM kernel module", "the user has to be in group kvm"),
    ("cannot set up guest memory", "the host has not enough free memory"),
    ("Could not set up host forwarding rule", "the port on the host is taken"),
    ("could not load PC BIOS", "the firmware image cannot be used; its size must be a multiple of 64 KiB"),
)
"""What QEMU says, and what to do about it."""
