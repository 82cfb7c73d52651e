"""The destination of a migration as seen from its source: ``hv`` on the other host, asked line by line."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

import attrs

import hvcore
from hvcore.cli.migration_wire import VERSION, Answer, Greeting, LineReader, WireError, error_from, typed, understand
from hvcore.cli.migration_wire import write_line as write
from hvcore.cli.plain_data import plain_data
from hvcore.cli.transport import Transport
from hvcore.deadline import Deadline
from hvcore.errors import HostError, OutcomeUnknown
from hvcore.hookspecs.table import OPERATION
from hvcore.model.migration import MigrationInfo, MigrationTarget
from hvcore.model.migration_policy import MigrationPolicy
from hvcore.model.state import InstanceInfo, Transition

T = TypeVar("T")

GREETING_TIME = 60.0
"""Seconds for the other host to answer at all; a password may have to be typed."""

_MARGIN = 15.0
_GOODBYE = 10.0


@attrs.frozen(kw_only=True)
class RemoteHost:
    """What the other host says of itself.

    Attributes:
        hypervisor: pairs of a program and its version.
    """

    hypervisor: tuple[tuple[str, str], ...]


@attrs.frozen(kw_only=True)
class _Facts:
    hypervisor: tuple[str, ...] = ()


class RemoteDestination:
    """A `hvcore.MigrationDestination` at the other end of a program. Use it as a context manager.

    Args:
        transport: how to get there.
        arguments: what ``hv`` over there is called with.
    """

    def __init__(self, transport: Transport, arguments: tuple[str, ...]) -> None:
        self._title = transport.title
        self._failure = transport.failure
        self._command = transport.command(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._broken = ""
        self._turn = threading.Lock()
        self.address = ""

    def __enter__(self) -> Self:
        """Start it, and hear its greeting.

        Raises:
            HostError: there is no ``hv`` of this kind at the other end; nothing was done.
        """
        try:
            # An interrupt is for this process: the other end is still needed to cancel, and to clean up.
            with _ignoring_interrupts():
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise HostError(f"cannot run {self._command[0]}: {error.strerror}") from error
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        self._reader = LineReader(self._process.stdout.fileno())
        try:
            line = self._reader.read(Deadline.after(GREETING_TIME))
            if line is None:
                raise WireError("it ended")
            greeting = understand(line, Greeting)
            if greeting.hv_migration_peer != VERSION:
                raise WireError(f"it speaks version {greeting.hv_migration_peer}, and this one {VERSION}")
            with contextlib.suppress(ValueError):
                self.address = str(ipaddress.ip_address(greeting.address))
        except BaseException as error:
            status = self._end()
            if not isinstance(error, WireError):
                raise
            if self._failure is not None and status == self._failure:
                raise HostError(
                    f"{self._command[0]} to {self._title} failed; it says itself why",
                    hint="--ssh-config, --identity and --ssh-option tell it what it needs; run it by itself to try",
                ) from error
            raise HostError(
                f"there is no answer from hv on {self._title}: {error}",
                hint="see whether the same command runs by itself; --remote-hv names hv on that host",
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and not self._broken:
            with contextlib.suppress(OutcomeUnknown, hvcore.HypervisorError):
                self._ask("bye", {}, dict, _GOODBYE)
        self._end()

    def get_node_info(self) -> RemoteHost:
        """The version of its hypervisor."""
        found = self._ask("get_node_info", {}, _Facts)
        program, *versions = found.hypervisor or ("",)
        return RemoteHost(hypervisor=tuple((program, version) for version in versions[:1]))

    def accept_instance(self, info: MigrationInfo, address: str, policy: MigrationPolicy) -> MigrationTarget:
        """Prepare that host to receive an instance."""
        arguments = {"info": info, "address": address, "policy": policy}
        return self._ask("accept_instance", arguments, MigrationTarget)

    def get_instance_info(self, instance: str) -> InstanceInfo:
        """Say what an instance is doing there."""
        return self._ask("get_instance_info", {}, InstanceInfo)

    def finalize_migration_dst(self, info: MigrationInfo, success: bool) -> Transition:
        """Finish there."""
        return self._ask("finalize_migration_dst", {"info": info, "success": success}, Transition)

    def _ask(self, operation: str, arguments: Mapping[str, Any], kind: type[T], seconds: float | None = None) -> T:
        """One request and its answer.

        Raises:
            OutcomeUnknown: none came, or one that cannot be understood; the other end is not asked again.
            HypervisorError: what was raised over there.
        """
        if self._broken or self._process is None or self._process.stdin is None:
            raise self._lost(self._broken or "it was not started")
        limit = OPERATION[operation].default_timeout if seconds is None else seconds
        with self._turn:
            self._number += 1
            asked = False
            try:
                request = {"number": self._number, "operation": operation, "arguments": plain_data(arguments)}
                write(self._process.stdin.fileno(), request)
                asked = True
                line = self._reader.read(Deadline.after(limit + _MARGIN))
                if line is None:
                    raise WireError("it ended")
                answer = understand(line, Answer)
                if answer.number != self._number or (answer.result is None) == (answer.error is None):
                    raise WireError("it answered something that was not asked")
                if answer.error is None:
                    return answer.result if kind is dict else typed(kind, answer.result)  # type: ignore[return-value]
                error = error_from(answer.error)
            except WireError as problem:
                self._broken = str(problem)
                raise self._lost(self._broken) from problem
            except BaseException:
                self._catch_up(asked)
                raise
        # Who reads it is on another host, and would look for its cause there.
        error.message = f"on {self._title}: {error.message}"
        error.hint = error.hint and f"on {self._title}: {error.hint}"
        raise error

    def _catch_up(self, asked: bool) -> None:
        """Interrupted between request and answer: read it all the same, or it would be taken for that to the next."""
        try:
            if not asked or self._reader.read(Deadline.after(_GOODBYE)) is None:
                self._broken = "a request was interrupted"
        except BaseException:
            self._broken = "a request was interrupted"
            raise

    def _lost(self, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"hv on {self._title} cannot be asked: {why}", hint=f"on {self._title} run 'hv info', then 'hv recover'"
        )

    def _end(self) -> int | None:
        """Its exit status, ``None`` when it was not started."""
        process = self._process
        self._process = None
        if process is None:
            return None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            return process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                return process.wait(_GOODBYE)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Programs that are started now ignore the interrupt key."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
