"""``hv migration-peer``: the destination's part of ``hv migrate``, for one instance, over standard input and output."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click

import hvcore
from hvcore.cli.migration_wire import (
    VERSION,
    Greeting,
    LineReader,
    Request,
    WireError,
    error_data,
    typed,
    understand,
    write_line,
)
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.deadline import Deadline
from hvcore.errors import HypervisorError, InvalidParameters
from hvcore.findings import FindingSet
from hvcore.migration_evidence import state_of
from hvcore.migration_policy import read_migration_policy
from hvcore.model.migration import MigrationInfo
from hvcore.model.state import InstanceState

if TYPE_CHECKING:
    from hvcore.driver import Driver

_LAST_WORDS = 10.0
_LOOK = 0.1


@click.command(cls=HvCommand, hidden=True)
@click.argument("name")
@click.pass_obj
def migration_peer_command(session: Session, name: str) -> None:
    """Serve the destination of one migration; hv migrate starts it on the other host."""
    # What is written to a source that is gone has to be an error, and its interrupt key is not for this side.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    reading, writing = os.dup(0), os.dup(1)
    # Whatever else prints must not speak between the lines.
    os.dup2(2, 1)
    with session.driver() as driver:
        Peer(driver, name, reading, writing).serve()


@attrs.frozen(kw_only=True)
class _Acceptance:
    info: MigrationInfo
    address: str
    policy: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class _Finish:
    info: MigrationInfo
    success: bool


class Peer:
    """Answers requests about one instance until its source says goodbye, or is gone.

    Args:
        driver: the driver of this host.
        name: the instance; no other can be asked for.
        reading: descriptor that requests come from.
        writing: descriptor that answers go to.
    """

    def __init__(self, driver: Driver, name: str, reading: int, writing: int) -> None:
        self._driver = driver
        self._name = name
        self._reader = LineReader(reading)
        self._writing = writing
        self._accepted: MigrationInfo | None = None
        self._operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "get_node_info": self._facts,
            "accept_instance": self._accept,
            "get_instance_info": self._look,
            "finalize_migration_dst": self._finish,
        }

    def serve(self) -> None:
        """Until there is nothing more to be said."""
        try:
            address = os.environ.get("SSH_CONNECTION", "").split(" ")
            reached = address[2] if len(address) == 4 else ""
            write_line(self._writing, Greeting(hv_migration_peer=VERSION, hvcore=hvcore.__version__, address=reached))
            while (line := self._reader.read(Deadline.after(None))) is not None:
                request = understand(line, Request)
                if request.operation == "bye":
                    write_line(self._writing, {"number": request.number, "result": {}})
                    return
                write_line(self._writing, {"number": request.number, **self._answer(request)})
        except WireError as error:
            click.echo(f"hv migration-peer: {error}", err=True)
        self._abandoned()

    def _answer(self, request: Request) -> dict[str, Any]:
        operation = self._operations.get(request.operation)
        if operation is None:
            raise WireError(f"it asked for {request.operation[:60]!r}, which there is not")
        try:
            return {"result": operation(request.arguments)}
        except HypervisorError as error:
            return {"error": error_data(error)}

    def _facts(self, arguments: Mapping[str, Any]) -> Any:
        del arguments
        found = self._driver.get_node_info().hypervisor
        return {"hypervisor": list(found[0]) if found else []}

    def _accept(self, arguments: Mapping[str, Any]) -> Any:
        given = typed(_Acceptance, arguments)
        policy, findings = read_migration_policy(given.policy)
        if findings:
            raise InvalidParameters("the migration policy has errors", FindingSet(findings).below("policy"))
        target = self._driver.accept_instance(self._about(given.info), given.address, policy)
        self._accepted = given.info
        return target

    def _look(self, arguments: Mapping[str, Any]) -> Any:
        del arguments
        found = self._driver.get_instance_info(self._name)
        reason = {"cause": found.reason.cause, "detail": found.reason.detail}
        return {"name": found.name, "state": found.state, "reason": reason, "pid": found.pid}

    def _finish(self, arguments: Mapping[str, Any]) -> Any:
        given = typed(_Finish, arguments)
        found = self._driver.finalize_migration_dst(self._about(given.info), given.success)
        self._accepted = None
        return found

    def _about(self, info: MigrationInfo) -> MigrationInfo:
        if info.instance != self._name:
            raise WireError(f"it speaks of another instance: {info.instance[:60]!r}")
        return info

    def _abandoned(self) -> None:
        """The source is gone. What has arrived here waits for it, and what never will goes."""
        if self._accepted is None:
            return
        limit = time.monotonic() + _LAST_WORDS
        with contextlib.suppress(HypervisorError):
            while (state := state_of(self._driver, self._name)) is InstanceState.INCOMING:
                if time.monotonic() > limit:
                    return
                time.sleep(_LOOK)
            if state is None or not state.is_alive:
                self._driver.finalize_migration_dst(self._accepted, False)
