"""Saving an instance to a file and restoring it, each a transaction on the modelled world."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

from hvcore import (
    AlreadyRunning,
    Cause,
    Finding,
    FindingSet,
    InstanceState,
    InvalidParameters,
    NotRunning,
    OutcomeUnknown,
    Progress,
    SavedInstance,
    Transition,
    WrongState,
)
from hvcore_fake import guest
from hvcore_fake.account import look
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.life import finish, launch
from hvcore_fake.recovery import settle
from hvcore_fake.saved_file import Saved, discard, mark, read_saved, write_saved
from hvcore_fake.snapshots import overlays_of
from hvcore_fake.transaction import Call, transaction
from hvcore_fake.world import process_keys

OnProgress = Callable[[Progress], object] | None

_SAVABLE = (InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.PRELAUNCH)


def save(call: Call, name: str, path: str, on_progress: OnProgress) -> SavedInstance:
    """Save an instance to a file; see the hook of the same name."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        account = look(world, name)
        if account is None or account.process is None:
            raise NotRunning("it is not running", instance=name, hint="start it first")
        process, definition = account.process, account.definition
        _check_target(path)
        if not process.answering:
            world.advance(call.deadline.timeout())
            raise OutcomeUnknown("its process does not answer", instance=name, hint="look at it")
        if process.state not in _SAVABLE or definition is None:
            raise WrongState(f"it cannot be saved: it is {process.state}", instance=name, hint="resume or stop it")
        frozen = process
        if process.state is InstanceState.RUNNING:
            frozen = guest.freeze(process, world.clock(), InstanceState.PAUSED, Cause.HOST_PAUSE)
        saved = Saved(
            id=str(uuid.uuid4()),
            instance=definition,
            process=frozen,
            state=process.state,
            overlays=overlays_of(world, name),
        )
        with transaction(call, name, {"path": path, "id": saved.id}) as effects:
            effects.effect("file", lambda: write_saved(path, saved), undo=lambda: discard(path))
            _say(on_progress, "saving", process.memory)
            call.in_time()
            # Unlike a real one, a modelled process can be put back.
            effects.effect("kill", lambda: world.quit(name), files=process_keys(name))
            finish(world, name, effects.effect, Cause.HOST_SAVE, f"it was saved to {path}", saved.id)
    return SavedInstance(name=name, path=path, size=os.stat(path).st_size if os.path.exists(path) else 0)


def restore(call: Call, name: str, path: str, paused: bool, force: bool, on_progress: OnProgress) -> Transition:
    """Restore an instance; see the hook of the same name. The caller has read its name from the file, and its lock."""
    world = call.world
    with world.store.locked(call.deadline):
        settle(world, name)
        before = look(world, name)
        if before is not None and before.process is not None:
            raise AlreadyRunning(f"it is alive as process {before.process.pid}", instance=name, hint="stop it first")
        file = read_saved(path)
        saved, restored = file.saved, file.restored
        findings = [*check_disks(saved.instance), *check_use(world, saved.instance)]
        if not force and restored:
            findings.append(_finding("restored-before", "it has been restored"))
        elif not force and before is not None and (before.ending is None or before.ending.saved_as != saved.id):
            findings.append(_finding("ran-since", f"{name} has run since it was saved"))
        if not force and overlays_of(world, name)[: len(saved.overlays)] != saved.overlays:
            findings.append(_finding("disk-changed", "an external snapshot was deleted or reverted since it was saved"))
        _refuse(findings)
        still = paused or saved.state is not InstanceState.RUNNING
        with transaction(call, name, {"path": path, "restored": restored}) as effects:
            launch(world, effects.effect, saved.instance, True, call.in_time)
            effects.effect("load", lambda: world.load(name, saved.process))
            _say(on_progress, "loading", saved.process.memory)
            call.in_time()
            effects.effect("mark", lambda: mark(path, True), undo=lambda: mark(path, restored))
            if not still:
                effects.effect("resume", lambda: world.resume(name), files=process_keys(name))
    after = InstanceState.PAUSED if paused and saved.state is InstanceState.RUNNING else saved.state
    state = None if before is None else before.state
    return Transition(name=name, before=state, after=after, changed=True, detail=f"restored from {path}")


def _check_target(path: str) -> None:
    if os.path.lexists(path):
        _refuse([_finding("file-exists", f"there is something at {path}")])
    if not os.path.isdir(os.path.dirname(path)):
        _refuse([_finding("directory-missing", f"there is no directory {os.path.dirname(path)}")])


def _finding(code: str, message: str) -> Finding:
    return Finding(code=code, path="path", message=message)


def _refuse(findings: list[Finding]) -> None:
    if findings:
        raise InvalidParameters("it cannot be done with that file", FindingSet(findings))


def _say(on_progress: OnProgress, phase: str, size: int) -> None:
    if on_progress is not None:
        on_progress(Progress(phase=phase, done=size, total=size))
