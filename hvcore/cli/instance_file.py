"""Instance files, and the arguments of commands that take one or the name of an instance."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from hvcore.cli.session import session_of
from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet

if TYPE_CHECKING:
    from hvcore.driver import Driver
    from hvcore.model.instance import Instance

SUFFIX = ".toml"
LIMIT = 2**20
"""Largest instance file that is read, in bytes."""

_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")


def complete_instances(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers where an instance is named: the instances there are; files when none begins like this."""
    try:
        with session_of(ctx).driver() as driver:
            names = [row.name for row in driver.list_instances(timeout=1.0).instances]
    except Exception:
        # A shell that completes a word has no place for an error; the command will tell.
        names = []
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


file_argument = click.argument("file", type=click.Path(), metavar="FILE")
"""The path of an instance file."""

name_argument = click.argument("name", metavar="NAME|FILE", shell_complete=complete_instances)
"""The name of an instance, or the path of its file."""


def is_file(text: str) -> bool:
    """The argument is meant as an instance file, not as a name."""
    return text.endswith(SUFFIX)


def read_instance_file(path: str) -> dict[str, Any]:
    """Read an instance file.

    Raises:
        InvalidParameters: it cannot be read or is not TOML; the finding has line and column.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        hint = "give the path of an instance file"
        raise _unusable(path, "unreadable-file", error.strerror or str(error), hint) from error
    if len(data) > LIMIT:
        raise _unusable(path, "unreadable-file", f"is longer than {LIMIT} bytes", "give an instance file")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        bad_line = data[: error.start].count(b"\n") + 1
        raise _unusable(f"{path}:{bad_line}", "invalid-toml", "is not UTF-8", "save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _POSITION.search(str(error))
        end = (text.count("\n") + 1, len(text) - text.rfind("\n"))
        line, column = found.groups() if found else end
        message = _POSITION.sub("", str(error))
        hint = "instance files are TOML: text stands in quotes, a table begins with [name]"
        raise _unusable(f"{path}:{line}:{column}", "invalid-toml", message, hint) from error


def instance_name(text: str) -> str:
    """The name that an argument means: itself, or the name in its file.

    Raises:
        InvalidParameters: the file cannot be used, or has no name.
    """
    if not is_file(text):
        return text
    name = read_instance_file(text).get("name")
    if not isinstance(name, str):
        raise _unusable("name", "missing-name", f"{text} has no name of an instance", 'add name = "..."')
    return name


def checked_instance(driver: Driver, path: str) -> Instance:
    """The instance a file defines.

    Raises:
        InvalidParameters: everything that is wrong with it.
    """
    from hvcore.definition import read_definition

    values = read_instance_file(path)
    findings = driver.check_parameter_syntax(values)
    if not findings.ok:
        raise InvalidParameters(f"the definition in {path} has errors", findings.errors)
    return read_definition(values)[0]


def _unusable(where: str, code: str, message: str, hint: str) -> InvalidParameters:
    finding = Finding(code=code, path=where, message=message, hint=hint)
    return InvalidParameters("the instance file cannot be used", FindingSet([finding]))
