"""``hv doctor``: what this host and its drivers can do, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import click

import hvcore
from hvcore.capabilities import Capability, ClaimLevel
from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.failure import error_lines
from hvcore.cli.output import Output
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.errors import HypervisorError
from hvcore.findings import FindingSet
from hvcore.model.host import NodeInfo
from hvcore.model.units import format_size
from hvcore.registry import available_drivers


@click.command(cls=HvCommand)
@click.pass_obj
def doctor_command(session: Session) -> int:
    """Say what this host and its drivers can do, and what is wrong.

    Looks at every installed driver, or at the one that --driver names. Ends with 1 when something is wrong that keeps
    a driver from working.
    """
    names = [session.driver_name] if session.driver_name else sorted({entry.name for entry in available_drivers()})
    reports = [examine(session, name) for name in names]
    healthy = all(report["ok"] for report in reports)
    output = session.output()
    if output.as_json:
        output.document({"ok": healthy, "hvcore": hvcore.__version__, "drivers": reports})
    else:
        for report in reports:
            _show(output, report)
        _show_host(output, reports)
        output.say("Everything that was looked at works." if healthy else "Something has to be put right, see above.")
    return ExitStatus.DONE if healthy else ExitStatus.FAILED


def examine(session: Session, name: str) -> dict[str, Any]:
    """Load one driver and ask it about itself and the host; an error is part of the report.

    Returns:
        ``name``, ``ok``, ``description``, ``claims``, ``node``, ``findings``, and ``error`` when there was one.
    """
    report: dict[str, Any] = {"name": name, "ok": False}
    try:
        with session.driver(name) as driver:
            report["description"] = description = driver.describe_driver()
            report["claims"] = tuple(description.claim(capability) for capability in Capability)
            report["node"] = driver.get_node_info()
            report["findings"] = findings = driver.verify()
            report["ok"] = findings.ok
    except HypervisorError as error:
        report["error"] = error.as_dict()
        report["lines"] = tuple(error_lines(error))
    return report


def _show(output: Output, report: dict[str, Any]) -> None:
    description = report.get("description")
    if description is None:
        output.heading(f"Driver {report['name']} cannot be loaded")
    else:
        output.heading(f"Driver {description.name} {description.version}")
        output.pairs(
            [
                ("about", description.summary),
                ("hypervisor", description.hypervisor or _hypervisor(report.get("node"))),
                ("hook API", str(description.hook_api)),
            ]
        )
        rows = [(claim.capability.value, claim.level.value, claim.reason) for claim in report["claims"]]
        order = list(ClaimLevel)
        output.say("")
        output.table(("capability", "claim", "reason"), sorted(rows, key=lambda row: order.index(ClaimLevel(row[1]))))
    findings = report.get("findings", FindingSet())
    if findings or "lines" in report:
        output.say("")
        output.heading("Findings")
    output.findings(findings)
    for line in report.get("lines", ()):
        output.say(line)
    output.say("")


def _show_host(output: Output, reports: list[dict[str, Any]]) -> None:
    nodes = [report["node"] for report in reports if "node" in report]
    if nodes:
        # The same host for every driver; only what they say of their hypervisors differs.
        output.heading("Host")
        output.pairs(_node_rows(nodes[0]))
        output.say("")


def _hypervisor(node: NodeInfo | None) -> str:
    return "" if node is None else ", ".join(f"{name} {value}" for name, value in node.hypervisor)


def _node_rows(node: NodeInfo) -> list[tuple[str, str]]:
    pools = (f"{pool.free} of {pool.total} pages of {format_size(pool.size)} free" for pool in node.huge_pages)
    pressure = (
        f"{pressure.resource.value} {pressure.some_avg10:g} %"
        for pressure in node.pressure
        if pressure.some_avg10 is not None
    )
    return [
        ("name", node.hostname),
        ("kernel", f"Linux {node.kernel} ({node.architecture})"),
        ("processors", f"{node.cpus_online} online ({node.sockets} sockets, {node.cores} cores)"),
        ("memory", f"{_mib(node.memory_free)} of {_mib(node.memory_total)} free"),
        ("NUMA nodes", str(len(node.numa_nodes))),
        ("huge pages", ", ".join(pools)),
        ("stalled", ", ".join(pressure)),
        ("cgroups", node.cgroups.mode.value),
    ]


def _mib(size: int) -> str:
    return f"{size // 2**20} MiB"
