"""``hv conformance``: whether a driver keeps the contract."""

from __future__ import annotations

from typing import Any

import click

from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.output import Output
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session


@click.command(cls=HvCommand)
@click.argument("name")
@click.option("--report", metavar="DIR", help="Write verdict.json, verdict.md, verdict.html and pytest.log there.")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the profile, or of the plugin."
)
@click.option("--nic-mode", metavar="MODE", help="Test this NIC mode of the driver instead of the driver.")
@click.option("--security-model", metavar="MODEL", help="Test this security model instead.")
@click.option("--console-type", metavar="TYPE", help="Test this console type instead.")
@click.option("-k", "selection", metavar="EXPRESSION", default="", help="Only the checks that match, as with pytest.")
@click.option("--progress", is_flag=True, help="Show pytest's output on standard error.")
@click.pass_obj
def conformance_command(
    session: Session,
    name: str,
    report: str | None,
    options: tuple[str, ...],
    nic_mode: str | None,
    security_model: str | None,
    console_type: str | None,
    selection: str,
    progress: bool,
) -> int:
    """Test a driver or a family plugin against the contract, and print the verdict.

    Everything happens in temporary directories; other instances are not touched. Needs the extra "conformance", and
    of the driver NAME a profile. For a plugin, --option gives its parameters, and for a NIC mode link and ip of the
    NIC. Ends with 0 when what was tested is conformant, and with 1 otherwise.
    """
    from hvcore.conformance.run import run_suite

    chosen = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        chosen[key] = value
    families = {"nic-mode": nic_mode, "security-model": security_model, "console-type": console_type}
    named = [f"{kind}:{plugin}" for kind, plugin in families.items() if plugin is not None]
    if len(named) > 1:
        raise click.UsageError("name one of --nic-mode, --security-model and --console-type")
    settings = session.settings if session.driver_name in (None, name) else {}
    verdict = run_suite(
        name,
        report=report,
        settings=settings,
        options=chosen,
        family=named[0] if named else "",
        selection=selection,
        progress=progress,
    )
    output = session.output()
    if output.as_json:
        output.document(verdict)
    else:
        _show(output, verdict, report)
    return ExitStatus.DONE if verdict["verdict"] == "conformant" else ExitStatus.FAILED


_SHOWN = {
    "failed": "failed",
    "not-run": "could not be run here",
}


def _show(output: Output, verdict: dict[str, Any], report: str | None) -> None:
    whose = f"{verdict['plugin']} of driver" if verdict["plugin"] else "Driver"
    output.heading(f"{whose} {verdict['driver']} {verdict['version']}: {verdict['verdict']}")
    counts = verdict["counts"].items()
    output.table(("sentences", "status"), [(str(count), status) for status, count in counts if count])
    for problem in verdict["problems"]:
        output.say(problem)
    for status, words in _SHOWN.items():
        found = [row for row in verdict["requirements"] if row["status"] == status]
        if not found:
            continue
        output.say("")
        output.heading(f"Sentences that {words}")
        for row in found:
            for check in row["checks"]:
                if check["outcome"] in ("failed", "not-probed"):
                    output.say(f"{row['id']}  {check['check']}: {check['message']}")
    if report:
        output.say(f"The whole report is in {report}.")
