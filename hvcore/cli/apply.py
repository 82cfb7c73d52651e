"""``hv apply``: change a running instance to what its file says, as far as that is possible now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
import click

from hvcore.cli.duration import timeout_option
from hvcore.cli.exit_status import ExitStatus, exit_status
from hvcore.cli.failure import error_lines, show_message
from hvcore.cli.instance_file import checked_instance, file_argument
from hvcore.cli.output import printable
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.cli.waiting import waiting
from hvcore.errors import HypervisorError, InstanceBusy, InvalidParameters, NotRunning, OutcomeUnknown

if TYPE_CHECKING:
    from hvcore.driver import Driver
    from hvcore.model.devices import Device, HotplugResult
    from hvcore.model.instance import Instance
    from hvcore.model.plan import PlannedChange

_DRIVE = re.compile(r"params\.(cdroms\[([0-9]+)\]|floppy)(?:\.|$)")
_DEVICE = re.compile(r"(disks|nics)\[([0-9]+)\]")
_ALL_FAIL = (InstanceBusy, NotRunning, OutcomeUnknown)
"""After these there is no use in trying the rest."""


@attrs.frozen
class Applied:
    """What became of the differences between a file and an instance.

    Attributes:
        done: what was done, or asked of the guest.
        failed: what could not be done, and why.
        left: what has to wait for the next start.
    """

    done: list[HotplugResult]
    failed: list[tuple[str, HypervisorError]]
    left: list[PlannedChange]

    @property
    def status(self) -> ExitStatus:
        """The exit status of all that: an unknown outcome before a failure, a failure before what is left."""
        errors = [error for _, error in self.failed]
        worst = next((error for error in errors if isinstance(error, OutcomeUnknown)), errors[0] if errors else None)
        if worst is not None:
            return exit_status(worst)
        return ExitStatus.BUSY if self.left or not all(result.done for result in self.done) else ExitStatus.DONE


@click.command(cls=HvCommand, name="apply")
@file_argument
@timeout_option
@click.pass_obj
def apply_command(session: Session, file: str, timeout: float | None) -> int:
    """Apply what is different in an instance's file to the running instance, as far as that is possible now.

    Devices are removed, added and changed, media and virtual CPUs too, and what 'hv plan' calls live takes effect;
    everything else has to wait for the next start, and is listed. What cannot be done is said, and does not keep the
    rest from being done. Ends with 4 when something is left.
    """
    output = session.output()
    with session.driver() as driver:
        instance = checked_instance(driver, file)
        changes = driver.plan_start(instance).changes
        if changes is None:
            raise NotRunning("it is not running", instance=instance.name, hint=f"hv start {file}")
        with waiting(session, "the guest to follow"):
            applied = apply_changes(driver, instance, changes, timeout)
    if output.as_json:
        failed = [{"what": what, "error": error.as_dict()} for what, error in applied.failed]
        output.document({"name": instance.name, "done": applied.done, "failed": failed, "left": applied.left})
        return applied.status
    for result in applied.done:
        output.say(f"{result.device}: {result.detail}")
    for what, error in applied.failed:
        first, *more = error_lines(error)
        show_message(f"{what}: {first}")
        for line in more:
            click.echo(printable(line), err=True)
    if applied.left:
        output.say("at the next start:")
    for change in applied.left:
        output.say(f"  {change.path}")
    if not (applied.done or applied.failed or applied.left):
        output.say("nothing is different")
    return applied.status


def apply_changes(
    driver: Driver, instance: Instance, changes: tuple[PlannedChange, ...], timeout: float | None
) -> Applied:
    """Apply differences to a running instance: what is live, its devices, and how many virtual CPUs it has.

    What fails does not keep the rest from being done, unless the rest would fail in the same way.

    Args:
        driver: the driver.
        instance: the definition.
        changes: what is different, as it is planned.
        timeout: seconds for each request; the operation's own when ``None``.
    """
    from hvcore.model.devices import Processors

    applied = Applied([], [], [])
    steps = list(_live(driver, instance, changes, timeout))
    vcpus = next((change for change in changes if change.path == "vcpus"), None)
    if vcpus is not None:
        processors = Processors(count=instance.vcpus)
        steps.append(("vcpus", lambda: driver.hot_mod_device(instance.name, processors, timeout=timeout)))
    left = [
        change for change in changes if change.effect == "start" or (change.device is None and not _is_live(change))
    ]
    left = [change for change in left if change is not vcpus]
    waits = {change.device for change in left if change.device is not None}
    # What goes first makes room for what comes.
    gone = [change for change in changes if change.after is None and _is_whole(change) and change not in left]
    steps += [(change.path, _removal(driver, instance, change, timeout)) for change in gone]
    seen: set[str] = set()
    for change in changes:
        uuid = change.device
        if uuid is None or uuid in seen or uuid in waits or change in gone:
            continue
        seen.add(uuid)
        steps.append((_place(change.path), _coming(driver, instance, change, timeout)))
    for what, step in steps:
        try:
            applied.done.append(step())
        except HypervisorError as error:
            if vcpus is not None and what == "vcpus" and isinstance(error, InvalidParameters):
                # More or fewer than can be plugged.
                left.append(vcpus)
                continue
            applied.failed.append((what, error))
            if isinstance(error, _ALL_FAIL):
                break
    else:
        applied.done.extend(_under_way(driver, instance, changes, applied.done))
    applied.left.extend(c for c in changes if c in left or (c.device in waits and c not in gone))
    return applied


Steps = Iterator[tuple[str, Callable[[], "HotplugResult"]]]


def _under_way(
    driver: Driver, instance: Instance, changes: tuple[PlannedChange, ...], done: list[HotplugResult]
) -> Iterator[HotplugResult]:
    """What the file has, and the guest was asked to let go of earlier: no difference now, but there will be one."""
    from hvcore.model.devices import HotplugResult

    named = {*(change.device for change in changes), *(result.device for result in done)}
    for device in driver.get_instance_info(instance.name).devices:
        if device.state == "removing" and device.uuid not in named:
            detail = "its removal is under way; once it has gone, 'hv apply' adds it again"
            yield HotplugResult(device=device.uuid, done=False, detail=detail)


def _removal(
    driver: Driver, instance: Instance, change: PlannedChange, timeout: float | None
) -> Callable[[], HotplugResult]:
    return lambda: driver.hot_del_device(instance.name, change.device or "", timeout=timeout)


def _coming(
    driver: Driver, instance: Instance, change: PlannedChange, timeout: float | None
) -> Callable[[], HotplugResult]:
    """What adds a device, or changes it."""
    device = _device_at(instance, change.path, change.device or "")
    operation = driver.hot_add_device if change.before is None and _is_whole(change) else driver.hot_mod_device
    return lambda: operation(instance.name, device, timeout=timeout)


def _is_live(change: PlannedChange) -> bool:
    return change.device is None and change.effect != "start" and change.path.startswith("params.")


def _live(driver: Driver, instance: Instance, changes: tuple[PlannedChange, ...], timeout: float | None) -> Steps:
    """What is to be told of parameters that are live: of drives one by one, of the others together."""
    from hvcore.model.devices import LiveParameters, Medium

    def step(device: Device) -> Callable[[], HotplugResult]:
        return lambda: driver.hot_mod_device(instance.name, device, timeout=timeout)

    drives: dict[str, None] = {}
    values: dict[str, Any] = {}
    for change in changes:
        if not _is_live(change):
            continue
        drive = _DRIVE.match(change.path)
        if drive is not None:
            drives[drive[1]] = None
        else:
            name = change.path.split(".")[1].partition("[")[0]
            values[name] = instance.params.get(name)
    if values:
        yield ", ".join(f"params.{name}" for name in values), step(LiveParameters(values=values))
    for name in drives:
        found = _DRIVE.match(f"params.{name}")
        index = found[2] if found is not None else None
        medium = {"path": instance.params["floppy"]} if index is None else instance.params["cdroms"][int(index)]
        wanted = Medium(drive=name, path=medium.get("path"), url=medium.get("url"))
        yield f"params.{name}", step(wanted)


def _is_whole(change: PlannedChange) -> bool:
    return _DEVICE.fullmatch(change.path) is not None


def _place(path: str) -> str:
    found = _DEVICE.match(path)
    return found[0] if found is not None else path


def _device_at(instance: Instance, path: str, uuid: str) -> Device:
    found = _DEVICE.match(path)
    assert found is not None  # noqa: S101 - paths of changes with a device begin like this
    devices: tuple[Any, ...] = getattr(instance, found[1])
    device: Device = attrs.evolve(devices[int(found[2])], uuid=uuid)
    return device
