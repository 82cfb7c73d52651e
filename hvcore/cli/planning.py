"""``hv check`` and ``hv plan``: everything that can be known before a start, touching nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import click

from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import file_argument, read_instance_file
from hvcore.cli.output import Output
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.driver import Driver
from hvcore.errors import InvalidParameters
from hvcore.findings import FindingSet
from hvcore.model.plan import Plan, PlannedChange


@click.command(cls=HvCommand)
@file_argument
@click.pass_obj
def check_command(session: Session, file: str) -> int:
    """Find everything that is wrong with an instance file, here.

    First its syntax, then, when that is right, this host; and advice. Ends with 2 when there are errors. Nothing is
    created or changed.
    """
    with session.driver() as driver:
        findings = check_file(driver, file)
    output = session.output()
    if output.as_json:
        output.document({"file": file, "ok": findings.ok, "findings": [finding.as_dict() for finding in findings]})
    else:
        output.findings(findings)
        output.say(f"{file}: {_verdict(findings)}")
    return ExitStatus.DONE if findings.ok else ExitStatus.INVALID


def check_file(driver: Driver, file: str) -> FindingSet:
    """Everything that is wrong with an instance file, and advice."""
    try:
        values = read_instance_file(file)
    except InvalidParameters as error:
        return error.findings
    if not (syntax := driver.check_parameter_syntax(values)).ok:
        return syntax
    findings = driver.validate_parameters(values)
    try:
        return findings + driver.assess_parameters(values)
    except InvalidParameters as error:
        # Advice may need what the host lacks; then the host's findings have said so already.
        return findings + error.findings


def _verdict(findings: FindingSet) -> str:
    errors = len(findings.errors)
    others = len(findings) - errors
    noted = f", {others} more to know" if others else ""
    if errors:
        return f"{errors} error{'s' if errors > 1 else ''}{noted}"
    return f"can be started here{noted}"


@click.command(cls=HvCommand)
@file_argument
@click.option("--paused", is_flag=True, help="As for a start that leaves the guest paused.")
@click.option("--origins", is_flag=True, help="Say for each option what in the file it comes from.")
@click.pass_obj
def plan_command(session: Session, file: str, paused: bool, origins: bool) -> None:
    """Show what a start would do, touching nothing: decisions, steps, descriptors and command line.

    Of an instance that runs, also what is different from the file, and whether that can take effect live, by hotplug,
    or at the next start.
    """
    with session.driver() as driver:
        plan = driver.plan_start(read_instance_file(file), paused=paused)
    output = session.output()
    if output.as_json:
        output.document(plan_data(plan))
    else:
        _show(output, plan, origins)


def plan_data(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, with the whole argument list."""
    return {
        "name": plan.name,
        "program": plan.program,
        "argv": plan.argv,
        "options": plan.options,
        "environment": dict(plan.environment),
        "fds": plan.fds,
        "steps": plan.steps,
        "notes": plan.notes,
        "changes": plan.changes,
    }


def _show(output: Output, plan: Plan, origins: bool) -> None:
    output.heading(f"Instance {plan.name}")
    for note in plan.notes:
        output.say(f"  {note}")
    if plan.changes is not None:
        _show_changes(output, plan.changes)
    output.heading("Steps")
    for number, step in enumerate(plan.steps, 1):
        output.say(f"  {number:>2}. {step}")
    if plan.fds:
        output.heading("Inherited descriptors")
        for fd in plan.fds:
            output.say(f"  {fd.number:>3}  {fd.name}: {fd.purpose}")
    if plan.environment:
        output.heading("Environment")
        for name, value in plan.environment:
            output.say(f"  {name}={value}")
    output.heading("Command line")
    if origins:
        output.table(("origin", "option"), [(option.origin, shlex.join(option.words)) for option in plan.options])
    else:
        output.say(plan.shell())


def _show_changes(output: Output, changes: Sequence[PlannedChange]) -> None:
    output.heading("Different from the running instance")
    if not changes:
        output.say("  nothing")
        return
    rows = [(change.path, _value(change.before), _value(change.after), _EFFECTS[change.effect]) for change in changes]
    output.table(("path", "runs with", "file", "takes effect"), rows)


_EFFECTS = {"live": "live", "hotplug": "by hotplug", "start": "at the next start"}


def _value(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
