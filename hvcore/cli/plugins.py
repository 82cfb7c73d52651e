"""``hv plugins``: what is installed, from the metadata of distributions and the text of their sources."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

import attrs
import click

from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.plugin_summary import plugin_summary
from hvcore.registry import DRIVER_GROUP, EXTENSION_GROUP, PluginEntry, available

_PREFIX = "hvcore"
_FIRST = (DRIVER_GROUP, EXTENSION_GROUP)


def plugin_groups() -> tuple[str, ...]:
    """The entry-point groups of plugins: drivers, extensions, then every other group whose name begins with hvcore."""
    others = sorted(group for group in metadata.entry_points().groups if group.startswith(_PREFIX))
    return (*_FIRST, *(group for group in others if group not in _FIRST))


def installed_plugins() -> Iterator[PluginEntry]:
    """Every installed plugin, group by group."""
    for group in plugin_groups():
        yield from available(group)


@click.command(cls=HvCommand)
@click.pass_obj
def plugins_command(session: Session) -> None:
    """List the installed plugins, importing none of them.

    Drivers are loaded by --driver NAME; a driver's own kinds of plugins (NIC modes, security models, console types)
    are named in instance files; extensions only run in host applications that name them.
    """
    output = session.output()
    entries = list(installed_plugins())
    if output.as_json:
        output.document({"plugins": [_described(entry) for entry in entries]})
        return
    rows = [
        (_kind(entry.group), entry.name, entry.distribution, entry.version, plugin_summary(entry)) for entry in entries
    ]
    output.table(("kind", "name", "distribution", "version", "summary"), rows)


def _described(entry: PluginEntry) -> dict[str, Any]:
    """An entry for machines: with its kind in words and its summary."""
    return {**attrs.asdict(entry), "kind": _kind(entry.group), "summary": plugin_summary(entry)}


def _kind(group: str) -> str:
    """What a group's plugins are, in words: ``hvcore_kvm.nic_modes`` holds ``kvm nic mode``."""
    package, _, plural = group.partition(".")
    owner = package.removeprefix("hvcore").lstrip("_")
    words = plural.removesuffix("s").replace("_", " ").replace(".", " ")
    return f"{owner} {words}".strip() or group
