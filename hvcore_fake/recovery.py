"""Putting in order what a killed host application left half done, from its journal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvcore import (
    Cause,
    FindingSet,
    HypervisorError,
    InstanceState,
    InvalidParameters,
    RecordError,
    RecoveredInstance,
    Recovery,
    unfinished,
)
from hvcore_fake import backup_files
from hvcore_fake.account import ENDINGS, account_keys, directory_key, record_key
from hvcore_fake.copied import remove_images
from hvcore_fake.disks import check_disks, check_use
from hvcore_fake.finishing import settle_destination, settle_sides, settle_source
from hvcore_fake.ledger import align, settle_devices
from hvcore_fake.life import at_once, finish, kept_definition, launch, put_in_order
from hvcore_fake.link import PROCESSES
from hvcore_fake.record import MadeImage, RuntimeRecord
from hvcore_fake.saved_file import discard, mark, read_saved
from hvcore_fake.tracking import NEXT
from hvcore_fake.transaction import JOURNALS, Call, journal_key
from hvcore_fake.world import World

_DIRECTORIES = ("state/", PROCESSES, "data/")

COMPLETED = "completed"
UNDONE = "undone"
FAILED = "failed"


def recover(call: Call, name: str) -> Recovery:
    """Put one instance in order; see the hook of the same name."""
    world = call.world
    if not world.store.exists(JOURNALS):
        return Recovery()
    with world.store.locked(call.deadline):
        world.store.sweep(*_DIRECTORIES)
        found = _settled(world, name) or _sides(world, name) or _devices(world, name)
    return Recovery(instances=() if found is None else (found,))


def settle(world: World, name: str) -> RecoveredInstance | None:
    """Complete or undo what was left half done of an instance; ``None`` when nothing was.

    The caller holds the world's lock, so that no journal found here belongs to an operation under way. What is done
    can be done again: whoever is killed in it leaves the journal for the next.
    """
    key = journal_key(name)
    if not world.store.exists(key):
        return None
    world.store.sweep(*_DIRECTORIES, directory_key(name), f"{ENDINGS}{name}/")
    entries = unfinished(world.store.path(key))
    operation = str(entries[0].get("begin", "")) if entries else ""
    outcome, detail = UNDONE, "nothing had been done yet"
    if operation in _SETTLERS:
        steps = [entry for entry in entries if "step" in entry]
        outcome, detail = _SETTLERS[operation](world, name, entries[0], steps)
    world.store.remove(key)
    return RecoveredInstance(name=name, operation=operation or "unknown", outcome=outcome, detail=detail)


def _settled(world: World, name: str) -> RecoveredInstance | None:
    try:
        return settle(world, name)
    except HypervisorError as error:
        return RecoveredInstance(name=name, operation="unknown", outcome=FAILED, detail=error.message)


def _sides(world: World, name: str) -> RecoveredInstance | None:
    found = settle_sides(world, name)
    if found is None:
        return None
    operation, outcome, detail = found
    return RecoveredInstance(name=name, operation=operation, outcome=outcome, detail=detail)


def _devices(world: World, name: str) -> RecoveredInstance | None:
    try:
        said = settle_devices(world, name)
    except RecordError as error:
        return RecoveredInstance(name=name, operation="hot_del_device", outcome=FAILED, detail=error.message)
    if not said:
        return None
    return RecoveredInstance(name=name, operation="hot_del_device", outcome=COMPLETED, detail=", ".join(said))


Steps = Sequence[Mapping[str, Any]]


def _settle_start(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del name, begin
    if _committed(steps):
        return COMPLETED, "it had been started"
    _put_back(world, steps)
    return UNDONE, "what had been started was taken away"


def _settle_accept(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    outcome = _settle_start(world, name, begin, steps)
    if outcome[0] == UNDONE:
        remove_images(MadeImage(**each) for each in begin.get("made") or ())
    return outcome


def _settle_stop(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del begin, steps
    alive = world.process(name) is not None
    put_in_order(world, name)
    if alive:
        return UNDONE, "it runs on"
    return COMPLETED, "what it had held was released"


def _settle_control(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del name, begin
    before: Mapping[str, Any] = steps[0]["images"] if steps else {}
    if world.store.images(before) != before:
        return COMPLETED, "it had been done"
    return UNDONE, "it had not been done"


def _settle_cleanup(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del begin, steps
    world.store.remove(*account_keys(name))
    return COMPLETED, "everything kept about it was removed"


def _settle_reboot(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    if any(step["step"] == "reset" for step in steps):
        return _settle_control(world, name, begin, steps)
    if _committed(steps):
        return COMPLETED, "it had been started again"
    process = world.process(name)
    if process is not None and process.pid == begin.get("process"):
        put_in_order(world, name)
        _put_back(world, steps)
        return UNDONE, "it runs on"
    # Its guest is gone and cannot be brought back: the only way is forward.
    _put_back(world, [step for step in steps if step["step"] in _LAUNCH])
    return _start_again(world, name)


def _settle_finish_source(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del steps
    if settle_source(world, name, begin.get("success") is True):
        return COMPLETED, "the migration was finished"
    return UNDONE, "the migration is as it was"


def _settle_finish_destination(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del begin, steps
    if settle_destination(world, name):
        return COMPLETED, "the migration was finished"
    return UNDONE, "the migration is as it was"


def _settle_save(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del steps
    path, ident = str(begin.get("path", "")), str(begin.get("id", ""))
    if world.process(name) is not None:
        discard(path)
        put_in_order(world, name)
        return UNDONE, "it runs on"
    finish(world, name, cause=Cause.HOST_SAVE, detail=f"it was saved to {path}", saved_as=ident)
    return COMPLETED, f"it is in {path}"


def _settle_backup(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    files, checkpoint = dict(begin.get("files") or {}), begin.get("checkpoint")
    published = any(step["step"] == "publish" for step in steps)
    whole = published and backup_files.are_published(files)
    if whole and checkpoint is not None:
        world.begin_checkpoint(name, str(checkpoint))
        whole = world.process(name) is not None
    if whole:
        for part in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        return COMPLETED, "all of it is there"
    backup_files.discard(files, published=published)
    world.forget_checkpoint(name, NEXT)
    return UNDONE, "nothing of it is left"


def _settle_restore(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    process = world.process(name)
    # What has begun to run is not undone: it must not run twice.
    if _committed(steps) or (process is not None and process.state is InstanceState.RUNNING):
        return COMPLETED, "it had been restored"
    _put_back(world, steps)
    path, restored = str(begin.get("path", "")), bool(begin.get("restored"))
    try:
        if read_saved(path).restored is not restored:
            mark(path, restored)
    except RecordError:
        return UNDONE, f"what had been started was taken away; {path} has gone"
    return UNDONE, "what had been started was taken away"


def _settle_devices(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    del begin
    said = settle_devices(world, name)
    record = world.store.read(record_key(name), RuntimeRecord)
    if record is not None and record.changes:
        return COMPLETED, "the guest has been asked, and has not let go of it yet"
    kept = any(words.endswith(("not added", "kept")) for words in said)
    done = any(step["step"] == "settle" for step in steps) or bool(said)
    return (COMPLETED if done and not kept else UNDONE), ", ".join(said) or "nothing was left to do"


def _settle_modification(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    if not any(step["step"] == "change" for step in steps):
        return _settle_devices(world, name, begin, steps)
    before = next((step["images"] for step in steps if step["step"] == "record"), None)
    if before is not None and world.store.images(before) != before:
        return COMPLETED, "it had been changed"
    align(world, name)
    return UNDONE, "it is as it was"


def _settle_told(world: World, name: str, begin: Mapping[str, Any], steps: Steps) -> tuple[str, str]:
    """What the guest has been told is not taken back; nothing of it is half done."""
    process = world.process(name)
    device = None if process is None else process.device(str(begin.get("device")))
    told = device is not None and device.size == begin.get("size")
    told = told or (
        process is not None and process.memory_target is not None and process.memory_target == begin.get("memory")
    )
    if told or _committed(steps):
        return COMPLETED, "it had been told"
    return UNDONE, "it had not been told"


def _start_again(world: World, name: str) -> tuple[str, str]:
    definition = kept_definition(world, name)
    if definition is None:
        finish(world, name)
        return FAILED, "what it was to be started with is not known; it is stopped"
    findings = FindingSet([*check_disks(definition), *check_use(world, definition)])
    if not findings.ok:
        finish(world, name)
        return FAILED, f"it is stopped: {InvalidParameters('this host cannot run the definition', findings)}"
    launch(world, at_once, definition, False)
    return COMPLETED, "it was started again"


def _put_back(world: World, steps: Steps) -> None:
    for step in reversed(steps):
        world.store.restore(step["images"])


def _committed(steps: Steps) -> bool:
    return any(step["step"] == "commit" for step in steps)


_LAUNCH = ("directory", "process", "record", "resume")

_SETTLERS: dict[str, Callable[[World, str, Mapping[str, Any], Steps], tuple[str, str]]] = {
    "start_instance": _settle_start,
    "stop_instance": _settle_stop,
    "reboot_instance": _settle_reboot,
    "pause_instance": _settle_control,
    "resume_instance": _settle_control,
    "cleanup_instance": _settle_cleanup,
    "hot_add_device": _settle_devices,
    "hot_del_device": _settle_devices,
    "hot_mod_device": _settle_modification,
    "resize_disk": _settle_told,
    "balloon_instance_memory": _settle_told,
    "disconnect_console": _settle_control,
    "set_console_password": _settle_told,
    "accept_instance": _settle_accept,
    "migrate_instance": _settle_control,
    "continue_migration": _settle_control,
    "cancel_migration": _settle_control,
    "finalize_migration_source": _settle_finish_source,
    "finalize_migration_dst": _settle_finish_destination,
    "save_instance": _settle_save,
    "backup_instance": _settle_backup,
    "delete_checkpoint": _settle_control,
    "create_snapshot": _settle_control,
    "revert_snapshot": _settle_start,
    "delete_snapshot": _settle_control,
    "restore_instance": _settle_restore,
}
