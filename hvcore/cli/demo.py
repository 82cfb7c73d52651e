"""``hv demo``: the whole life of one instance, watched from the outside, in half a minute."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

import click

from hvcore.cli.demo_guest import DemoGuest, firmware_guest, linux_guest, modelled_guest
from hvcore.cli.demo_story import Story, StoryFailed
from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.failure import error_lines
from hvcore.cli.narrator import Narrator
from hvcore.cli.root import HvCommand
from hvcore.cli.serial_line import GuestSilent
from hvcore.cli.session import DEFAULT_DRIVER, Session
from hvcore.directories import default_directories
from hvcore.driver import Driver
from hvcore.errors import HypervisorError
from hvcore.guests import GuestBuildError

MODEL = "fake"
"""The driver that needs nothing of the host."""


@click.command(cls=HvCommand)
@click.option(
    "--guest-cache",
    envvar="HV_GUEST_CACHE",
    show_envvar=True,
    metavar="PATH",
    help="Where the Linux guest is built and kept.",
)
@click.option(
    "--guest", type=click.Choice(["linux", "firmware"]), default="linux", show_default=True, help="What runs."
)
@click.pass_obj
def demo_command(session: Session, guest_cache: str | None, guest: str) -> int:
    """Build a small Linux guest and show its whole life, in half a minute.

    Everything happens in a temporary directory that is removed at the end; other instances are not touched. The first
    time, the guest is built from packages of the distribution and kept. Without QEMU the story is told on a model.
    """
    if session.as_json:
        raise click.UsageError("demo tells a story; it has no JSON form.")
    narrator = Narrator(session.output())
    root = tempfile.mkdtemp(prefix="hv-demo-")
    try:
        with contextlib.ExitStack() as stack:
            driver = stack.enter_context(_choose_driver(session, narrator, root))
            other = stack.enter_context(session.driver(driver.name, _settings(root, "other")))
            chosen = _choose_guest(driver, narrator, root, guest, guest_cache or _guest_cache(session))
            Story(driver, other, chosen, narrator, modelled=driver.name == MODEL).tell()
    except HypervisorError as error:
        return _failed(narrator, "\n".join(error_lines(error)))
    except (GuestSilent, StoryFailed, OSError) as error:
        return _failed(narrator, str(error))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if os.path.exists(root):
        return _failed(narrator, f"{root} could not be removed")
    narrator.proof(f"the temporary directory is removed; that was the demo, in {narrator.elapsed:.1f} s")
    narrator.say("Now yours: hv params, then write a file like docs/examples/minimal.toml, hv check it, hv start it.")
    return ExitStatus.DONE


def _failed(narrator: Narrator, why: str) -> int:
    narrator.trouble(why)
    narrator.say("What had been started was stopped, and the temporary directory is removed.")
    narrator.say("'hv doctor' says what this host lacks.")
    return ExitStatus.FAILED


def _settings(root: str, host: str) -> dict[str, str]:
    """Directories of a host of its own; what can be made again is made once."""
    kept = {f"{kind}_directory": os.path.join(root, host, kind) for kind in ("state", "data")}
    return {**kept, "cache_directory": os.path.join(root, "cache")}


def _choose_driver(session: Session, narrator: Narrator, root: str) -> Driver:
    name = session.driver_name or DEFAULT_DRIVER
    settings = _settings(root, "")
    narrator.step(f"Load the driver {name}")
    driver = session.driver(name, settings)
    description = driver.describe_driver()
    narrator.say(f"{description.summary} Version {description.version}, found by its entry point.")
    narrator.say(f"All it keeps is in {root}; no daemon, no libvirt.")
    node = driver.get_node_info()
    known = ", ".join(f"{program} {version}" for program, version in node.hypervisor)
    narrator.say(f"This host: {node.cpus_online} processors, Linux {node.kernel}{f'; {known}' if known else ''}.")
    lacking = driver.verify().errors
    if not lacking:
        return driver
    for finding in lacking:
        narrator.trouble(str(finding))
    driver.close()
    if session.driver_name is not None or name == MODEL:
        raise StoryFailed(f"driver {name} cannot work on this host")
    narrator.step(f"Load the driver {MODEL} instead")
    narrator.say("This host cannot run QEMU, so the same story is told on a model of a hypervisor: nothing boots.")
    return session.driver(MODEL, settings)


def _choose_guest(driver: Driver, narrator: Narrator, root: str, wanted: str, cache: str) -> DemoGuest:
    if driver.name == MODEL:
        return modelled_guest()
    narrator.step("Get a guest")
    if wanted == "linux":
        try:
            guest = linux_guest(cache, narrator.say)
        except GuestBuildError as error:
            narrator.trouble(str(error))
            narrator.say("So the demo goes on with the guest that ships with hvcore.")
        else:
            narrator.say(f"{guest.title}, kept in {cache}.")
            return guest
    guest = firmware_guest(root)
    narrator.say(f"{guest.title}: it answers on the serial line and obeys the power button.")
    return guest


def _guest_cache(session: Session) -> str:
    cache = session.directories.get("cache_directory") or default_directories().cache
    return os.path.join(cache, "guests")
