"""``hv params``: what an instance file may set, from the declarations of the driver and its plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.driver import Driver
from hvcore.errors import HypervisorError
from hvcore.params.explain import ParameterRow, parameter_rows
from hvcore.params.json_schema import json_schema
from hvcore.registry import available_drivers


@click.command(cls=HvCommand)
@click.argument("words", nargs=-1, metavar="[DRIVER] [FILTER]")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of instance files.")
@click.pass_obj
def params_command(session: Session, words: tuple[str, ...], schema: bool) -> None:
    """List what an instance file may set, and what this host supports of it.

    FILTER shows only parameters whose path, section or summary contains that text.
    """
    driver_name, wanted = _driver_and_filter(words)
    with session.driver(driver_name) as driver:
        table, name = driver.parameters(), driver.name
        here = {} if schema else _supported(driver)
    output = session.output()
    if schema:
        output.document(json_schema(table, name))
        return
    rows = [row for row in parameter_rows(table) if _matches(row, wanted)]
    if output.as_json:
        output.document({"driver": name, "parameters": [row_data(row, here) for row in rows]})
        return
    output.table(
        ("path", "type", "default", "choices", "on this host", "summary"),
        [
            (
                row.path,
                row.type,
                _default(row),
                " ".join(row.declaration.choices),
                _few(here.get(row.path, ())),
                row.declaration.summary,
            )
            for row in rows
        ],
    )


def row_data(row: ParameterRow, supported: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One parameter as plain data, without its checks, which are functions.

    Args:
        row: the parameter.
        supported: values this host supports, by path of the parameter.
    """
    declared = row.declaration
    return {
        "path": row.path,
        "section": row.section,
        "type": row.type,
        "default": row.default,
        "required": row.required,
        "choices": declared.choices,
        "unit": declared.unit,
        "summary": declared.summary,
        "since": declared.since,
        "secret": declared.secret,
        "changes": declared.changes,
        "aliases": declared.aliases,
        "supported": supported.get(row.path),
    }


_FEW = 6


def _few(values: Sequence[str]) -> str:
    more = f" and {len(values) - _FEW} more (see --json)" if len(values) > _FEW else ""
    return " ".join(values[:_FEW]) + more


def _supported(driver: Driver) -> Mapping[str, Sequence[str]]:
    """What the host's hypervisor has; nothing where there is none."""
    try:
        return driver.get_node_info().supported
    except HypervisorError:
        return {}


def _driver_and_filter(words: tuple[str, ...]) -> tuple[str | None, str]:
    if len(words) > 2:
        raise click.UsageError("There is at most one driver and one filter.")
    if len(words) == 2:
        return words[0], words[1]
    if words and words[0] in {entry.name for entry in available_drivers()}:
        return words[0], ""
    return None, words[0] if words else ""


def _matches(row: ParameterRow, wanted: str) -> bool:
    text = "\n".join((row.path, row.section, row.declaration.summary, *row.declaration.aliases))
    return wanted.lower() in text.lower()


def _default(row: ParameterRow) -> str:
    return "(required)" if row.required else row.default
