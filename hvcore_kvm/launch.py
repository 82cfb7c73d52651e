"""Starting an instance: a transaction of steps, after which it runs or nothing of the attempt is left."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import psutil

from hvcore import (
    Deadline,
    DeadlineExceeded,
    HostError,
    HypervisorRefused,
    InstanceState,
    Journal,
    OperationFailed,
    RecordError,
    SpawnFailed,
    Step,
    boot_id,
    private_directory,
)
from hvcore_kvm import private_root, process
from hvcore_kvm.affinity import pin_running
from hvcore_kvm.capabilities import qemu_words
from hvcore_kvm.cgroup import Cgroup, find_hierarchy, remove_groups
from hvcore_kvm.companions import (
    COMPANIONS,
    Companion,
    CompanionConfinement,
    CompanionRecords,
    kill_companion,
    start_companion,
)
from hvcore_kvm.directory import COMPANIONS_OUTPUT, CONTROL, JOURNAL, ROOT, STDERR, InstanceDirectory
from hvcore_kvm.families import FdRequest, InterfaceEvent
from hvcore_kvm.launch_plan import LaunchPlan
from hvcore_kvm.qmp import QmpClient, QmpError, QmpRefused, QmpTimeout
from hvcore_kvm.qmp.client import connect_unix
from hvcore_kvm.runtime import (
    HISTORY,
    HISTORY_BEFORE,
    MIGRATION,
    PLACEMENT,
    PROCESS,
    RECORD,
    SCHEMA,
    History,
    MigrationRecord,
    Placement,
    ProcessRecord,
    RuntimeRecord,
)

_STDERR_TAIL = 8192
_UNDO_PATIENCE = 15.0


class ArrivingFiles(Protocol):
    """Images that are made for a guest that comes from another host."""

    def make(self) -> None:
        """Make them. Raises `HostError`; `remove` puts away what was made until then."""

    def remove(self) -> None:
        """Take away what was made."""


@attrs.frozen(kw_only=True)
class Arrival:
    """What the start of an instance whose guest comes from another host has more.

    Attributes:
        record: written down before anything else.
        listen: makes QEMU wait for the guest; takes its monitor and its process id.
        files: images that have to be made before; ``None`` when all are there.
    """

    record: MigrationRecord
    listen: Callable[[QmpClient, int], None]
    files: ArrivingFiles | None = None


class SavedGuest(Protocol):
    """A guest that comes from a file."""

    def load(self, client: QmpClient, deadline: Deadline) -> None:
        """Give it to a QEMU that waits for it. Raises `QmpError`, or what ends the start."""

    def mark(self) -> None:
        """It is there; from now on it may run, here and nowhere else."""

    def unmark(self) -> None:
        """It is there no more."""


class Launch:
    """One start. Use it once.

    Args:
        plan: what to start.
        directory: the instance's directory; holds nothing.
        start_timeout: seconds QEMU may take until its monitor answers.
        announce: told of network interfaces that have come up.
        arrival: its guest comes from another host.
        saved: its guest comes from a file.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        directory: InstanceDirectory,
        start_timeout: float,
        announce: Callable[[InterfaceEvent], None],
        arrival: Arrival | None = None,
        saved: SavedGuest | None = None,
    ) -> None:
        self._plan = plan
        self._arrival = arrival
        self._saved = saved
        self._directory = directory
        self._start_timeout = start_timeout
        self._announce = announce
        self._name = plan.decisions.definition.name
        self._pidfd: int | None = None
        self._pid: int | None = None
        self._companions = CompanionRecords()
        self._made_variables: str | None = None
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
        _refuse_late(deadline)
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
        if self._arrival is not None:
            self._directory.write(MIGRATION, self._arrival.record, schema=SCHEMA)
        # First: from it, whoever finds an interrupted start knows what to take down.
        self._write_record()
        if self._arrival is not None and self._arrival.files is not None:
            # The step that takes them away is there first: some may have been made when one cannot be.
            journal.run(Step(name="images", do=_nothing, undo=self._arrival.files.remove))
            journal.run(Step(name="images: make", do=self._arrival.files.make))
        if plan.decisions.definition.machine.chroot or plan.root is not None:
            private_directory(self._directory.join(ROOT))
        if plan.decisions.firmware is not None and plan.decisions.firmware.variables is not None:
            journal.run(Step(name="UEFI variables", do=self._keep_variables, undo=self._forget_variables))
        for step in plan.security.steps:
            journal.run(step)
        hierarchy = find_hierarchy()
        limits = plan.limits
        if plan.decisions.definition.resources.pids_limit is None and not hierarchy.has("pids"):
            limits = attrs.evolve(limits, pids=None)  # the model's wish, not the definition's
        cgroup = Cgroup(hierarchy, self._name, self._directory.path, limits)
        if cgroup.paths:
            remove = functools.partial(remove_groups, self._name, self._directory.path)
            journal.run(Step(name="control groups", do=cgroup.make, undo=remove))
        for nic, nic_plan in plan.nics:
            for step in nic_plan.down:
                # QEMU is gone after a start that failed, too. What hangs on a descriptor is made with it.
                journal.run(Step(name=f"{nic.origin}: prepare", do=_nothing, undo=step.do))
            for step in nic_plan.up:
                journal.run(step)
        for companion in plan.companions:
            stack.callback(companion.let_go)
            start = functools.partial(self._start_companion, companion)
            journal.run(Step(name=f"start {companion.name}", do=start, undo=self._end_companions))
        fds: list[int] = []
        try:
            for request in plan.fds:
                fds.append(self._open(request))
            self._announce_interfaces()
            # Connected before QEMU exists: the greeting arrives the moment its monitor is up, the end of the
            # connection means that it ended. Nothing is polled.
            connection = connect_unix(self._directory.join(CONTROL), deadline)
            self._client = QmpClient(connection)
            journal.run(Step(name="spawn", do=lambda: self._spawn(fds, cgroup), undo=self._kill))
        finally:
            for fd in fds:
                os.close(fd)
        # While QEMU is coming up, which takes longer.
        journal.run(Step(name="records", do=self._keep_records, undo=self._restore_records))
        self._greet(deadline)
        self._set_up(journal, deadline)
        saved = self._saved
        if saved is not None:
            journal.run(Step(name="load", do=functools.partial(self._load, saved, deadline)))
            journal.run(Step(name="mark", do=saved.mark, undo=saved.unmark))
        if not plan.paused:
            journal.run(Step(name="cont", do=lambda: self._cont(deadline)))

    def _open(self, request: FdRequest) -> int:
        try:
            return request.open()
        except HostError as error:
            if error.code != "companion-ended":
                raise
            said = self._directory.tail(COMPANIONS_OUTPUT, _STDERR_TAIL).strip() or "nothing"
            raise HostError(f"{error.message}; it said: {said}", code=error.code, hint=error.hint) from error

    def _announce_interfaces(self) -> None:
        for nic, nic_plan in self._plan.nics:
            if nic_plan.interface:
                event = InterfaceEvent(instance=self._name, nic=nic.nic, interface=nic_plan.interface, change="up")
                self._announce(event)

    def _keep_variables(self) -> None:
        firmware = self._plan.decisions.firmware
        assert firmware is not None  # noqa: S101 - asked before the step is made
        assert firmware.variables is not None  # noqa: S101 - the same
        # A store of QEMU's may begin empty.
        if self._directory.copy_in(firmware.template or os.devnull, firmware.variables):
            self._made_variables = firmware.variables

    def _forget_variables(self) -> None:
        if self._made_variables is not None:
            self._directory.remove(self._made_variables, data=True)
            self._directory.remove_data_if_empty()

    def _start_companion(self, companion: Companion) -> None:
        output = self._directory.append_only(COMPANIONS_OUTPUT)
        try:
            started = start_companion(companion, output, self._confinement())
        finally:
            os.close(output)
        self._companions = attrs.evolve(self._companions, companions=(*self._companions.companions, started))
        self._directory.write(COMPANIONS, self._companions, schema=SCHEMA)

    def _confinement(self) -> CompanionConfinement | None:
        """That of QEMU, for a companion; signals reach one that is not the first process of a namespace."""
        security = self._plan.security
        if security.root is None:
            return None
        return CompanionConfinement(
            launcher=security.launcher,
            namespaces=tuple(kind for kind in security.namespaces if kind != "pid"),
            owner=security.root.owner,
            place=self._directory.join(ROOT),
        )

    def _end_companions(self) -> None:
        for record in self._companions.companions:
            kill_companion(record)

    def _set_up(self, journal: Journal, deadline: Deadline) -> None:
        """What has to be done between the first answer of QEMU's monitor and the guest's first instruction."""
        plan, definition = self._plan, self._plan.decisions.definition
        for command in plan.commands:
            do = functools.partial(self._execute, command.name, deadline, command.arguments)
            journal.run(Step(name=f"{command.name} for {command.origin}", do=do))
        # The balloon of a guest that arrives is as it was.
        arrives = self._arrival is not None or self._saved is not None
        given = (definition.memory.memory_min, definition.memory.balloon_target)
        if given != (None, None) and not arrives:
            journal.run(Step(name="balloon", do=lambda: self._inflate(deadline)))
        if plan.pins:
            journal.run(Step(name="pin threads", do=lambda: self._pin(deadline)))
        if self._arrival is not None:
            journal.run(Step(name="listen", do=self._listen))

    def _listen(self) -> None:
        assert self._arrival is not None  # noqa: S101 - asked before the step is made
        assert self._client is not None  # noqa: S101 - it has answered
        assert self._pid is not None  # noqa: S101 - the same
        self._arrival.listen(self._client, self._pid)

    def _inflate(self, deadline: Deadline) -> None:
        definition = self._plan.decisions.definition
        least = definition.memory.memory_min
        target: int = definition.memory.balloon_target or definition.instance.memory
        if least is not None:
            # The largest of what it may have, the host has, and it must have.
            target = max(least, min(target, psutil.virtual_memory().available))
        if target < definition.instance.memory:
            self._execute("balloon", deadline, {"value": target})

    def _pin(self, deadline: Deadline) -> None:
        assert self._pid is not None  # noqa: S101 - it has answered
        cpu = self._plan.decisions.definition.cpu
        masks = {"cpu": cpu.cpu_pin, "emulator": cpu.emulator_pin, "iothread": cpu.iothread_pin}
        pin_running(self._pid, lambda command: self._execute(command, deadline), **masks)

    def _spawn(self, fds: list[int], cgroup: Cgroup) -> None:
        security, root = self._plan.security, self._plan.root
        prepare = None
        if security.namespaces:
            place = self._directory.join(ROOT)
            prepare = functools.partial(private_root.enter, security.namespaces, root, place)
        output = self._directory.append_only(STDERR)
        try:
            self._started = time.time()
            pid = process.spawn(self._plan.argv, fds, output, security.launcher, prepare)
        finally:
            os.close(output)
        self._pidfd = os.pidfd_open(pid)
        self._pid = pid
        record = ProcessRecord(
            identity=process.identify(pid), started=self._started, qemu=self._plan.decisions.capabilities.path
        )
        self._directory.write(PROCESS, record, schema=SCHEMA)
        cgroup.attach(pid)

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
        companions = self._directory.tail(COMPANIONS_OUTPUT, _STDERR_TAIL)
        words = qemu_words(output)
        if ended is None:
            waits = " and ".join(nic.waits_for for _, nic in self._plan.nics if nic.waits_for)
            return DeadlineExceeded(
                f"QEMU was not ready in time: {error}" + (f"; it said: {words}" if words else ""),
                hint=f"it may be waiting for {waits}"
                if waits
                else "give it a longer timeout, or look at the load of the host",
            )
        status = ended.status
        how = "" if status is None else f" (exit status {status})" if status >= 0 else f" (signal {-status})"
        return SpawnFailed(
            f"QEMU ended at start{how}: {words or 'it said nothing'}",
            exit_status=status,
            output=output + companions,
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
            ports=self._plan.ports,
            logs=self._plan.logs,
        )
        self._directory.write(RECORD, record, schema=SCHEMA)

    def _keep_records(self) -> None:
        d = self._plan.decisions
        if self._plan.placement != self._old_placement:
            self._directory.write(PLACEMENT, self._plan.placement, schema=SCHEMA, data=True)
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

    def _load(self, saved: SavedGuest, deadline: Deadline) -> None:
        assert self._client is not None  # noqa: S101 - set by a step before
        try:
            saved.load(self._client, deadline)
        except QmpRefused as error:
            raise HypervisorRefused(error.command, error.error_class, error.text) from error
        except QmpTimeout as error:
            raise DeadlineExceeded("QEMU did not load the guest in time", hint="give it more time") from error
        except QmpError as error:
            raise self._not_ready(error) from error

    def _cont(self, deadline: Deadline) -> None:
        # QEMU may have been quick; a guest that has run a single instruction cannot be taken back.
        _refuse_late(deadline)
        self._execute("cont", deadline)

    def _execute(self, command: str, deadline: Deadline, arguments: Mapping[str, Any] | None = None) -> Any:
        assert self._client is not None  # noqa: S101 - set by a step before
        try:
            return self._client.execute(command, arguments, deadline=deadline)
        except QmpRefused as error:
            raise HypervisorRefused(command, error.error_class, error.text) from error
        except QmpTimeout as error:
            raise DeadlineExceeded(f"QEMU did not carry out {command} in time") from error
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


def _refuse_late(deadline: Deadline) -> None:
    if deadline.expired:
        raise DeadlineExceeded("there was no time left to start it; nothing of the attempt stays")


def _nothing() -> None:
    """What a step does that is there for its undo."""


def _advice(words: str) -> str | None:
    for text, advice in _ADVICE:
        if text in words:
            return advice
    return None


_ADVICE = (
    ("failed to set MSR", 'this KVM lacks what CPU model host needs: try cpu_features = {"arch-capabilities" = false}'),
    ('Failed to get "write" lock', "another process has the image open"),
    (
        "Failed to connect to '/proc/self/fd/",
        "is the switch of the NIC running, and may QEMU's user connect to its socket?",
    ),
    ("Could not access KVM kernel module", "the user has to be in group kvm"),
    ("cannot set up guest memory", "the host has not enough free memory"),
    ("Could not set up host forwarding rule", "the port on the host is taken"),
    (
        "Failed to bind socket",
        "the user that QEMU runs as may not make it there; the directory has to be writable for it",
    ),
    ("Unknown driver", "the block driver is a module of its own: apt-get install qemu-block-extra"),
    ("requested features", "name a simpler CPU model, or set params.cpu_enforce = false to go on without them"),
    ("could not load PC BIOS", "the firmware image cannot be used; its size must be a multiple of 64 KiB"),
)
"""What QEMU says, and what to do about it."""
