"""Finding plugins without importing them, and loading one driver with its families and extensions.

One `pluggy.PluginManager` per loaded driver: exactly one implementation answers each operation, two drivers never
meet, and closing is dropping.
"""

from __future__ import annotations

import inspect
import os
import platform
import types
import weakref
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol, cast

import attrs
import pluggy

from hvcore.audit import audit_driver, audit_extension, audit_hooks
from hvcore.directories import Directories, default_directories
from hvcore.driver import Driver
from hvcore.errors import HypervisorError, LoadError
from hvcore.findings import Finding, FindingSet
from hvcore.hookspecs.markers import PROJECT
from hvcore.hookspecs.table import SPECIFICATIONS
from hvcore.operation import DISPATCHER, Dispatcher

DRIVER_GROUP = "hvcore.drivers"
EXTENSION_GROUP = "hvcore.extensions"


@attrs.frozen(kw_only=True)
class PluginEntry:
    """One installed plugin, as its distribution's metadata names it; nothing of it has been imported.

    Attributes:
        group: entry-point group.
        name: name it is loaded by.
        value: the object the entry point refers to.
        distribution: name of the distribution that installed it.
        version: version of that distribution.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str

    @property
    def label(self) -> str:
        """Name and distribution, for messages."""
        return f"{self.name} ({self.distribution} {self.version})"


@attrs.frozen(kw_only=True)
class Family:
    """A kind of sub-plugin of a driver.

    Attributes:
        group: entry-point group its plugins are found in.
        title: what one is called, for example ``NIC mode``.
    """

    group: str
    title: str


@attrs.frozen(kw_only=True)
class DriverContext:
    """What a driver is constructed with.

    Attributes:
        name: the name it is loaded by.
        directories: where it may keep state; its own, below those of hvcore.
        settings: the host application's settings for it; the driver checks them.
        host_id: what tells this host from others.
    """

    name: str
    directories: Directories
    settings: Mapping[str, Any]
    host_id: str


class DriverPlugin(Protocol):
    """What the object behind a ``hvcore.drivers`` entry point returns when called with a `DriverContext`.

    Besides its hooks a driver may have ``families``, ``family_hookspecs`` and ``use_families(hook)``: the families of
    sub-plugins, the module that specifies their hooks, and where it is told the hook relay once they are registered.
    """


def available(group: str) -> tuple[PluginEntry, ...]:
    """The installed plugins of one entry-point group, sorted by name; reads metadata and imports nothing."""
    return _entries(metadata.entry_points(group=group), group)


def _all_points() -> metadata.EntryPoints:
    # Python 3.11 returns a mapping that can be selected from as well; from 3.12 on it is what the type says.
    return cast("metadata.EntryPoints", metadata.entry_points())


def _entries(points: metadata.EntryPoints, group: str) -> tuple[PluginEntry, ...]:
    entries = set()
    for entry in points.select(group=group):
        distribution, version = _origin(entry.dist)
        known = {"group": group, "name": entry.name, "value": entry.value}
        entries.add(PluginEntry(**known, distribution=distribution, version=version))
    return tuple(sorted(entries, key=lambda entry: (entry.name, entry.distribution)))


def _origin(distribution: metadata.Distribution | None) -> tuple[str, str]:
    """Name and version of a distribution; each question to it would read and parse its metadata anew."""
    if distribution is None:
        return "unknown", ""
    known = _ORIGINS.get(distribution)
    if known is None:
        known = _ORIGINS[distribution] = (distribution.name, distribution.version)
    return known


_ORIGINS: weakref.WeakKeyDictionary[metadata.Distribution, tuple[str, str]] = weakref.WeakKeyDictionary()


def available_drivers() -> tuple[PluginEntry, ...]:
    """The installed drivers; reads metadata and imports nothing."""
    return available(DRIVER_GROUP)


def load_driver(name: str, settings: Mapping[str, Any] | None = None, *, extensions: Sequence[object] = ()) -> Driver:
    """Load one driver by its entry-point name.

    Args:
        name: for example ``kvm`` or ``fake``.
        settings: settings of the driver; these belong to hvcore itself: ``state_directory``, ``data_directory``,
            ``cache_directory`` (absolute paths), ``prefer`` (a distribution, when two offer the same name) and
            ``host_id`` (what tells this host from others; the machine id when not given, with
            the state directory if that is not the usual one).
        extensions: what wraps operations, the first outermost: objects, names of installed extensions, or tuples of
            such a name and a mapping of keyword arguments.

    Returns:
        The driver. Close it, or use it as a context manager.

    Raises:
        LoadError: everything that is wrong with the driver, its families and the extensions.
    """
    given = dict(settings or {})
    prefer = given.pop("prefer", None)
    # One look at the metadata of everything installed for the whole load: it is the dearest part of it.
    points = _all_points()
    entry = _choose(points, DRIVER_GROUP, "driver", name, prefer)
    directories = _directories(given)
    context = DriverContext(
        name=name,
        directories=directories.below(name),
        host_id=str(given.pop("host_id", None) or _host_id(directories)),
        settings=types.MappingProxyType(given),
    )
    plugin = _make(points, entry, context)
    return load_plugin(plugin, context, label=entry.label, extensions=extensions, prefer=prefer, points=points)


def load_plugin(
    plugin: Any,
    context: DriverContext,
    *,
    label: str,
    extensions: Sequence[object] = (),
    prefer: str | None = None,
    points: metadata.EntryPoints | None = None,
) -> Driver:
    """Load a driver object that is already there, with the same audit as `load_driver`.

    Args:
        plugin: the driver.
        context: what it was constructed with.
        label: what to call it in messages.
        extensions: what wraps operations, the first outermost: objects, names of installed extensions, or tuples of
            such a name and a mapping of keyword arguments.
        prefer: distribution to take a family plugin from when two offer the same name.
        points: all installed entry points, if the caller has looked already.

    Raises:
        LoadError: everything that is wrong.
    """
    manager = pluggy.PluginManager(PROJECT)
    modules = list(SPECIFICATIONS)
    family_hookspecs = getattr(plugin, "family_hookspecs", None)
    if family_hookspecs is not None:
        modules.append(family_hookspecs)
    for module in modules:
        manager.add_hookspecs(module)
    findings = audit_driver(plugin, label, modules)
    members, problems = _family_members(points or _all_points(), plugin, modules, prefer)
    findings += problems
    wrapping, problems = _extensions(points or _all_points(), extensions, prefer)
    findings += problems
    for extension_label, extension in wrapping:
        findings += audit_extension(extension, extension_label, modules)
    if findings:
        raise LoadError(f"driver {context.name} cannot be loaded", FindingSet(findings))
    manager.register(plugin, f"driver {context.name}")
    manager.register(Dispatcher(manager, context.name, label), DISPATCHER)
    for member_name, member in members:
        manager.register(member, member_name)
    # pluggy calls the wrapper registered last first; the host's first is to be outermost.
    for position, (extension_label, extension) in reversed(list(enumerate(wrapping))):
        manager.register(extension, f"{extension_label} #{position + 1}")
    use_families = getattr(plugin, "use_families", None)
    if use_families is not None:
        use_families(manager.hook)
    return Driver(context.name, manager, plugin, context.directories, context.host_id)


def _choose(points: metadata.EntryPoints, group: str, title: str, name: str, prefer: str | None) -> PluginEntry:
    entries = _entries(points, group)
    named = [entry for entry in entries if entry.name == name]
    if len(named) > 1 and prefer:
        named = [entry for entry in named if entry.distribution == prefer] or named
    if len(named) == 1:
        return named[0]
    if named:
        both = " and ".join(entry.label for entry in named)
        finding = Finding(
            code="duplicate-plugin",
            path=name,
            message=f"is offered by {both}",
            hint="uninstall one, or prefer a distribution in the settings",
        )
    else:
        known = ", ".join(sorted({entry.name for entry in entries})) or "none"
        finding = Finding(
            code="unknown-plugin",
            path=str(name)[:60],
            message=f"is no installed {title}",
            hint=f"installed: {known}",
        )
    raise LoadError(f"there is no single {title} of that name", FindingSet([finding]))


def _import(points: metadata.EntryPoints, entry: PluginEntry) -> Any:
    for point in points.select(group=entry.group, name=entry.name):
        if point.value == entry.value and (point.dist is None or _origin(point.dist)[0] == entry.distribution):
            return point.load()
    raise LookupError(f"{entry.label} has gone")


def _make(points: metadata.EntryPoints, entry: PluginEntry, context: DriverContext) -> Any:
    try:
        return _import(points, entry)(context)
    except HypervisorError:
        raise
    except Exception as error:
        raise LoadError(f"driver {entry.name} cannot be loaded", FindingSet([_broken(entry, error)])) from error


def _broken(entry: PluginEntry, error: Exception) -> Finding:
    return Finding(
        code="broken-plugin",
        path=entry.label,
        message=f"{entry.value} cannot be imported or made: {type(error).__name__}: {error}",
        hint=f"repair or uninstall the distribution {entry.distribution}",
    )


def _family_members(
    points: metadata.EntryPoints, plugin: Any, modules: Sequence[types.ModuleType], prefer: str | None
) -> tuple[list[tuple[str, Any]], list[Finding]]:
    members: list[tuple[str, Any]] = []
    findings: list[Finding] = []
    for family in getattr(plugin, "families", ()):
        offered = points.select(group=family.group)
        for name in dict.fromkeys(entry.name for entry in _entries(offered, family.group)):
            try:
                entry = _choose(offered, family.group, family.title, name, prefer)
                member = _import(offered, entry)
            except LoadError as error:
                findings += error.findings
            except Exception as error:
                findings.append(_broken(entry, error))
            else:
                findings += audit_hooks(member, f"{family.title} {entry.label}", modules)
                members.append((f"{family.title} {entry.label}", member))
    return members, findings


def _extensions(
    points: metadata.EntryPoints, given: Sequence[object], prefer: str | None
) -> tuple[list[tuple[str, Any]], list[Finding]]:
    """The extensions with their labels: objects as they are, names made from their entry points."""
    made: list[tuple[str, Any]] = []
    findings: list[Finding] = []
    for index, extension in enumerate(given):
        match extension:
            case str(name):
                arguments: Mapping[str, Any] = {}
            case (str(name), Mapping() as arguments):
                pass
            case tuple():
                message = "is neither an extension, nor a name, nor a name and a mapping of its arguments"
                findings.append(Finding(code="invalid-value", path=f"extensions[{index}]", message=message))
                continue
            case _:
                label = _extension_label(extension)
                if any(extension is other for _, other in made):
                    findings.append(Finding(code="repeated-value", path=label, message="is given twice"))
                else:
                    made.append((label, extension))
                continue
        try:
            entry = _choose(points, EXTENSION_GROUP, "extension", name, prefer)
            factory = _import_extension(points, entry)
            findings += (unfit := _argument_faults(entry, factory, arguments))
            if not unfit:
                made.append((entry.label, factory(**arguments)))
        except LoadError as error:
            findings += error.findings
        except Exception as error:
            findings.append(_broken(entry, error))
    return made, findings


def _import_extension(points: metadata.EntryPoints, entry: PluginEntry) -> Any:
    factory = _import(points, entry)
    if not callable(factory):
        raise TypeError(f"it is {type(factory).__name__}, not a class or factory")
    return factory


def _argument_faults(entry: PluginEntry, factory: Any, arguments: Mapping[str, Any]) -> list[Finding]:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return []  # not written in Python; calling it will tell
    try:
        signature.bind(**arguments)
    except TypeError as error:
        hint = f'arguments are given with the name: ("{entry.name}", {{...}}) for {entry.name}{signature}'
        return [Finding(code="wrong-argument", path=entry.label, message=f"cannot be made: {error}", hint=hint)]
    return []


def _directories(settings: dict[str, Any]) -> Directories:
    standard = default_directories()
    chosen: dict[str, str] = {}
    findings = []
    for kind in ("state", "data", "cache"):
        given = settings.pop(f"{kind}_directory", None)
        path = getattr(standard, kind) if given is None else os.fspath(given)
        if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
            findings.append(Finding(code="invalid-value", path=f"{kind}_directory", message="is not an absolute path"))
        else:
            chosen[kind] = os.path.normpath(path)
    if findings:
        raise LoadError("the settings have errors", FindingSet(findings))
    return Directories(**chosen)


def _host_id(directories: Directories) -> str:
    """The machine id; with directories of their own, instances of one name are two, and must not look the same."""
    usual = directories.state == default_directories().state
    return _machine_id() if usual else f"{_machine_id()}{directories.state}"


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path, encoding="ascii") as file:
                found = file.read(64).strip()
        except OSError:
            continue
        if found:
            return found
    return platform.node()


def _extension_label(extension: object) -> str:
    return extension.__name__ if isinstance(extension, type | types.ModuleType) else type(extension).__name__
