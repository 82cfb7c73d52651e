"""``hv hotplug``: change the devices of a running instance."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import attrs
import click

from hvcore.cli.duration import timeout_option
from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.queries import shown_values
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.cli.waiting import waiting
from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet

if TYPE_CHECKING:
    from hvcore.model.devices import Device, HotplugResult, LiveParameters

_KIND = click.argument("kind", type=click.Choice(("disk", "nic")))
_LISTS = {"port": "virtio_ports", "usb": "usb"}
_ANY_KIND = click.argument("kind", type=click.Choice(("disk", "nic", "rng", *_LISTS)))
_WORDS = click.argument("words", nargs=-1, metavar="KEY=VALUE...")


@click.group(name="hotplug")
def hotplug_command() -> None:
    """Add, remove and change devices of a running instance.

    A device is described as in an instance file, a word for each key: path=/srv/data.raw format=raw params.bus=scsi.
    Beside disks and NICs that is the source of randomness, rng, as source=urandom rate=1000; a port of params
    .virtio_ports, as name=org.example.0; and a device of params.usb, as type=tablet.
    """


@hotplug_command.command(cls=HvCommand, name="list")
@name_argument
@click.pass_obj
def list_command(session: Session, name: str) -> None:
    """List the devices of an instance that can be plugged, and what is under way with them."""
    with session.driver() as driver:
        info = driver.get_instance_info(instance_name(name))
    output = session.output()
    if output.as_json:
        output.document({"name": info.name, "devices": info.devices, "peripherals": info.peripherals})
        return
    rows: list[tuple[str, ...]] = [
        (device.kind, device.uuid, device.name or "-", device.source, device.state) for device in info.devices
    ]
    rows += [(one.kind, "-", "-", shown_values(one.given), one.state) for one in info.peripherals]
    output.table(("kind", "uuid", "name", "source", "state"), rows)


@hotplug_command.command(cls=HvCommand, name="add")
@name_argument
@_ANY_KIND
@_WORDS
@timeout_option
@click.pass_obj
def add_command(session: Session, name: str, kind: str, words: tuple[str, ...], timeout: float | None) -> int:
    """Add a device to a running instance."""
    if kind not in ("disk", "nic"):
        return _change(session, name, peripheral(kind, words, goes=False), timeout)
    device = described(kind, words)
    with session.driver() as driver:
        return _show(session, driver.hot_add_device(instance_name(name), device, timeout=timeout))


@hotplug_command.command(cls=HvCommand, name="modify")
@name_argument
@_KIND
@_WORDS
@timeout_option
@click.pass_obj
def modify_command(session: Session, name: str, kind: str, words: tuple[str, ...], timeout: float | None) -> int:
    """Change a disk or NIC to a new description with the same uuid, without unplugging it where that is possible."""
    return _change(session, name, described(kind, words), timeout)


@hotplug_command.command(cls=HvCommand, name="remove")
@name_argument
@click.argument("device")
@_WORDS
@click.option("--force", is_flag=True, help="Cut a NIC off at once, whether the guest lets go of it or not.")
@timeout_option
@click.pass_obj
def remove_command(
    session: Session, name: str, device: str, words: tuple[str, ...], force: bool, timeout: float | None
) -> int:
    """Remove a device once the guest has let go of it.

    DEVICE is the uuid of a disk or NIC, rng, or port or usb with words that say which, as port name=org.example.0.
    When the guest has not answered after --timeout the removal is pending, and completed by the next change of the
    instance's devices, by its reset, or by 'hv recover'. Then this ends with 4.
    """
    if device in ("rng", *_LISTS):
        if force:
            raise click.UsageError("--force is for NICs")
        return _change(session, name, peripheral(device, words, goes=True), timeout)
    if words:
        raise click.UsageError("a uuid says which: no words after it")
    with session.driver() as driver, waiting(session, f"the guest to let go of {device[:60]}"):
        result = driver.hot_del_device(instance_name(name), device, force=force, timeout=timeout)
    return _show(session, result)


@hotplug_command.command(cls=HvCommand, name="medium")
@name_argument
@click.argument("drive")
@click.argument("image", required=False)
@click.option("--force", is_flag=True, help="Open a tray that the guest has locked.")
@timeout_option
@click.pass_obj
def medium_command(
    session: Session, name: str, drive: str, image: str | None, force: bool, timeout: float | None
) -> int:
    """Change what is in a drive: IMAGE is a path or an URL; without it the drive is emptied.

    DRIVE is its place in the instance file, cdroms[0] or floppy.
    """
    from hvcore.model.devices import Medium

    is_url = image is not None and "://" in image
    medium = Medium(drive=drive, path=None if is_url else image, url=image if is_url else None, force=force)
    return _change(session, name, medium, timeout)


@hotplug_command.command(cls=HvCommand, name="vcpus")
@name_argument
@click.argument("count", type=click.IntRange(1))
@timeout_option
@click.pass_obj
def vcpus_command(session: Session, name: str, count: int, timeout: float | None) -> int:
    """Give a running guest more virtual CPUs, up to its vcpus_max, or take plugged ones back."""
    from hvcore.model.devices import Processors

    return _change(session, name, Processors(count=count), timeout)


@hotplug_command.command(cls=HvCommand, name="set")
@name_argument
@_WORDS
@timeout_option
@click.pass_obj
def set_command(session: Session, name: str, words: tuple[str, ...], timeout: float | None) -> int:
    """Change parameters of a running instance that are live, such as cpu_pin=0-1 or memory_plugged=512MiB.

    Values are written as in an instance file; text needs its quotes only where it looks like a number. 'hv params' says
    of each when a change takes effect. Ends with 4 when the guest has not followed in time.
    """
    from hvcore.model.devices import LiveParameters

    values, findings = _table("params", words)
    if findings:
        raise InvalidParameters("the parameters have errors", FindingSet(findings))
    return _change(session, name, LiveParameters(values=values), timeout)


def described(kind: str, words: tuple[str, ...]) -> Device:
    """The disk or NIC that words describe, each ``KEY=VALUE`` as in an instance file; quotes are not needed.

    Raises:
        InvalidParameters: everything that is wrong with it.
    """
    from hvcore.definition import read_definition

    values, findings = _table(kind, words)
    plural = f"{kind}s"
    # The rest of a definition is there for its checks.
    instance, problems = read_definition({"name": "device", plural: [values]})
    findings += [attrs.evolve(f, path=f.path.replace(f"{plural}[0]", kind, 1)) for f in problems]
    if findings:
        raise InvalidParameters("the description of the device has errors", FindingSet(findings))
    device: Device = getattr(instance, plural)[0]
    return device


def peripheral(kind: str, words: tuple[str, ...], *, goes: bool) -> LiveParameters:
    """The change of parameters by which a device that words describe comes or goes.

    Args:
        kind: ``rng``, ``port`` or ``usb``.
        words: each ``KEY=VALUE`` as in an instance file.
        goes: it goes.

    Raises:
        InvalidParameters: everything that is wrong with the words.
    """
    from hvcore.model.devices import LiveParameters

    values, findings = _table(kind, words)
    allowed = ("source", "rate") if kind == "rng" and not goes else ()
    if kind == "rng":
        hint = f"it has {' and '.join(allowed)}" if allowed else "there is one at most"
        unknown = [key for key in values if key not in allowed]
        findings += [
            Finding(code="unknown-parameter", path=f"rng.{k[:40]}", message="is not used", hint=hint) for k in unknown
        ]
    elif not values and not findings:
        message = f"which {kind} is it?"
        findings.append(Finding(code="incomplete", path=kind, message=message, hint="see 'hv hotplug list'"))
    if findings:
        raise InvalidParameters("the description of the device has errors", FindingSet(findings))
    if kind == "rng":
        given = {f"rng_{key}": values.get(key) for key in ("source", "rate")}
        return LiveParameters(values={"rng": False if goes else None, **given})
    entries = {_LISTS[kind]: [values]}
    return LiveParameters(remove=entries) if goes else LiveParameters(add=entries)


def _change(session: Session, name: str, change: Device, timeout: float | None) -> int:
    with session.driver() as driver, waiting(session, "the guest to follow"):
        result = driver.hot_mod_device(instance_name(name), change, timeout=timeout)
    return _show(session, result)


def _table(kind: str, words: tuple[str, ...]) -> tuple[dict[str, Any], list[Finding]]:
    """The values that words give, each ``KEY=VALUE``, and what is wrong with the words."""
    values: dict[str, Any] = {}
    findings = []
    for word in words:
        key, equals, text = word.partition("=")
        *sections, last = key.split(".")
        if not equals or not all((*sections, last)):
            message, hint = f"{word[:60]!r} is not KEY=VALUE", "for example path=/srv/data.raw"
            findings.append(Finding(code="invalid-value", path=kind, message=message, hint=hint))
            continue
        place = values
        for section in sections:
            inner = place.setdefault(section, {})
            place = inner if isinstance(inner, dict) else {}
        place[last] = _value(text)
    return values, findings


def _value(text: str) -> Any:
    """A value as in an instance file; what is no TOML is text."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A date is text to everybody else; more than the one key is no value.
    value = found["value"] if list(found) == ["value"] else text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _show(session: Session, result: HotplugResult) -> int:
    output = session.output()
    if output.as_json:
        output.document(result)
    else:
        output.say(f"{result.device}: {result.detail}")
    return ExitStatus.DONE if result.done else ExitStatus.BUSY
