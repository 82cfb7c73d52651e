"""``hv new-plugin``: a package with a plugin that works, to be changed into another."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from importlib import resources
from typing import Any

import attrs
import click

import hvcore
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.conformance.profile import PROFILE_GROUP
from hvcore.errors import HostError, HypervisorError
from hvcore.registry import DRIVER_GROUP, EXTENSION_GROUP, available

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 32
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")


@attrs.frozen(kw_only=True)
class Kind:
    """One kind of plugin.

    Attributes:
        title: what one is called.
        does: what the one that is generated does, without a final stop.
        points: entry points, by group; what they refer to is in the package.
        files: templates of the kind besides those that all have, and where what they become belongs.
        shares: more templates, of those that several kinds have.
        extras: extras of hvcore that its commands and tests need.
        keyed: its parameters stand in an instance's ``params`` under its name.
    """

    title: str
    does: str
    points: dict[str, str]
    files: dict[str, str] = attrs.field(factory=dict)
    shares: dict[str, str] = attrs.field(factory=dict)
    extras: str = "cli"
    keyed: bool = False

    @property
    def group(self) -> str:
        """The entry-point group it is found in."""
        return next(iter(self.points))


_ALL = {
    "pyproject.toml": "pyproject.toml",
    "__init__.py": "src/@MODULE@/__init__.py",
    "py.typed": "src/@MODULE@/py.typed",
}
_EACH = {
    "README.md": "README.md",
    "plugin.py": "src/@MODULE@/plugin.py",
    "test_plugin.py": "tests/test_@IDENTIFIER@.py",
}
_OF_KVM = {"conftest.py": "tests/conftest.py"}

KINDS: dict[str, Kind] = {
    "nic-mode": Kind(
        title="NIC mode",
        does="a network among the instances of one host",
        points={"hvcore_kvm.nic_modes": "plugin"},
        shares=_OF_KVM,
        extras="cli,conformance",
    ),
    "security-model": Kind(
        title="Security model",
        does="QEMU yields the processor to everything else",
        points={"hvcore_kvm.security_models": "plugin"},
        shares=_OF_KVM,
        extras="cli,conformance",
        keyed=True,
    ),
    "console-type": Kind(
        title="Console type",
        does="what firmware writes to its debug port",
        points={"hvcore_kvm.console_types": "plugin"},
        shares=_OF_KVM,
        extras="cli,conformance",
        keyed=True,
    ),
    "driver": Kind(
        title="Driver",
        does="instances are processes that do nothing",
        points={DRIVER_GROUP: "plugin:HostDriver", PROFILE_GROUP: "conformance:profile"},
        files={f"{name}.py": f"src/@MODULE@/{name}.py" for name in ("accounts", "conformance", "processes")},
        extras="cli,conformance",
    ),
    "extension": Kind(
        title="Extension",
        does="counts the operations of a driver",
        points={EXTENSION_GROUP: "plugin:OperationCounter"},
        files={"example.py": "example.py"},
    ),
}
"""What can be made, by the word on the command line. Templates are in ``hvcore/templates``, below the same word."""


@click.command(cls=HvCommand)
@click.argument("kind", type=click.Choice(tuple(KINDS)), metavar="KIND")
@click.argument("name")
@click.option("--directory", metavar="DIR", default=".", help="Where the package is put; here when not given.")
@click.pass_obj
def new_plugin_command(session: Session, kind: str, name: str, directory: str) -> None:
    """Make a package with a plugin that works, to be changed.

    KIND is nic-mode, security-model, console-type, driver or extension. NAME is what users will write: lower-case
    letters, digits and single hyphens. The package is a new directory hvcore-NAME with the plugin, its tests and a
    README that says how to install, test and try it. Nothing is installed, and nothing that is there is changed.
    """
    made = KINDS[kind]
    _check_name(session, made, name)
    target = os.path.join(directory, f"hvcore-{name}")
    files = package_files(kind, name)
    write_package(target, files)
    output = session.output()
    if output.as_json:
        output.document({"kind": kind, "name": name, "directory": os.path.abspath(target), "files": sorted(files)})
        return
    output.heading(f"{target}: {made.title} {name}")
    for path in sorted(files):
        output.say(f"  {path}")
    output.say("Its README.md says how to install, test and try it; src has what to change.")


def package_files(kind: str, name: str) -> dict[str, str]:
    """The files of a package, by path below its directory.

    Args:
        kind: one of `KINDS`.
        name: name of the plugin.
    """
    made = KINDS[kind]
    identifier = name.replace("-", "_")
    module = f"hvcore_{identifier}"
    points = [f'[project.entry-points."{group}"]\n{name} = "{module}.{value}"' for group, value in made.points.items()]
    words = {
        "NAME": name,
        "IDENTIFIER": identifier,
        "MODULE": module,
        "DISTRIBUTION": f"hvcore-{name}",
        "SUMMARY": f"{made.title} {name} of hvcore: {made.does}.",
        "HVCORE": hvcore.__version__,
        "EXTRAS": made.extras,
        "ENTRY_POINTS": "\n\n".join(points),
    }
    templates = resources.files("hvcore") / "templates"
    files = {}
    for folder, places in (("common", _ALL | made.shares), (kind, _EACH | made.files)):
        for template, place in places.items():
            text = (templates / folder / f"{template}.tmpl").read_text(encoding="utf-8")
            files[_filled(place, words)] = _filled(text, words)
    return files


def write_package(target: str, files: dict[str, str]) -> None:
    """Write all files below a directory that is not there yet, or none.

    Raises:
        click.UsageError: it is there.
        HostError: it cannot be written.
    """
    if os.path.lexists(target):
        raise click.UsageError(f"{target} is there already, and nothing is overwritten; remove it, or give --directory")
    parent, last = os.path.split(target)
    # What is half written is under a name that nobody looks for, and gets its own at once.
    beside = os.path.join(parent, f".{last}.{os.getpid()}")
    try:
        os.mkdir(beside)
        try:
            for path, text in files.items():
                place = os.path.join(beside, path)
                os.makedirs(os.path.dirname(place), exist_ok=True)
                with open(place, "x", encoding="utf-8") as file:
                    file.write(text)
            os.rename(beside, target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise HostError(
            f"cannot make {target}: {error.strerror}",
            hint="give a directory you may write to with --directory",
            code="directory-not-writable",
        ) from error


def _filled(text: str, words: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: words[found[1]], text)


def _check_name(session: Session, kind: Kind, name: str) -> None:
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise _bad_name(
            f"{name!r} is no name: lower-case letters, digits and single hyphens, a letter first, {_LONGEST} at most."
        )
    for entry in available(kind.group):
        if entry.name == name:
            raise _bad_name(f"{kind.title} {entry.label} is there already.")
    module = f"hvcore_{name.replace('-', '_')}"
    if importlib.util.find_spec(module) is not None:
        raise _bad_name(f"A package {module} is there already.")
    if kind.keyed and name in _taken_keys(session):
        raise _bad_name(f"Driver kvm has parameters params.{name}, which would be mistaken for those of the plugin.")


def _bad_name(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="NAME")


def _taken_keys(session: Session) -> set[str]:
    """What stands in an instance's ``params``; nothing is known of a driver that cannot be loaded."""
    try:
        with session.driver("kvm") as driver:
            sections: tuple[Any, ...] = driver.parameters().at("instance")
    except HypervisorError:
        return set()
    own = {field.name for section in sections if not section.name for field in attrs.fields(section.fields)}
    return own | {section.name for section in sections if section.name}
