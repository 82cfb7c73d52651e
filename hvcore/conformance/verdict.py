"""The verdict on a driver, from what became of each check; as JSON, Markdown and HTML."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

import hvcore
from hvcore.capabilities import Capability, DriverDescription
from hvcore.conformance.contract import Requirement, requirements
from hvcore.conformance.page import verdict_page

SCHEMA = 1
"""Version of the format of ``verdict.json``."""

CONFORMANT, PARTIAL, FAILED = "conformant", "partial", "failed"

_NOT_RUN = {"not-claimed": "not-claimed", "absent": "absent", "not-probed": "not-run"}
_MEANINGS = {
    "passed": "its checks passed",
    "failed": "a check failed",
    "not-run": "no check of it could run here",
    "not-claimed": "the driver does not claim what it is about",
    "absent": "there is no such thing with this hypervisor",
    "not-covered": "the suite has no check of it yet",
}


@attrs.frozen(kw_only=True)
class CheckResult:
    """What became of one check.

    Attributes:
        check: its name, with its topic: ``lifecycle.a_second_start_is_refused``.
        requirement: id of the sentence it is about.
        outcome: ``passed``, ``failed``, or why it was not run: ``not-claimed``, ``absent``, ``not-probed``.
        message: what was wrong, or why it was not run.
        duration: seconds it took.
    """

    check: str
    requirement: str
    outcome: str
    message: str = ""
    duration: float = 0.0


@attrs.frozen(kw_only=True)
class RequirementResult:
    """What is known of one sentence of the contract: ``status`` is a key of the list in every report."""

    requirement: Requirement
    status: str
    checks: tuple[CheckResult, ...] = ()


@attrs.frozen(kw_only=True)
class Verdict:
    """Whether a driver keeps the contract.

    Attributes:
        driver: name of the driver.
        description: what it says of itself, ``None`` when it could not be loaded.
        results: one for each sentence, in the order of the contract.
        plugin: the plugin of a family that was tested, for example ``NIC mode segment``; empty for the driver itself.
        problems: what was wrong outside of any check: the driver could not be loaded, or the run broke off.
    """

    driver: str
    description: DriverDescription | None
    results: tuple[RequirementResult, ...]
    plugin: str = ""
    problems: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``failed`` when anything failed; ``partial`` when something could not be run; else ``conformant``."""
        counts = self.counts
        if self.problems or counts["failed"] or not counts["passed"]:
            return FAILED if self.problems or counts["failed"] or not counts["not-run"] else PARTIAL
        return PARTIAL if counts["not-run"] else CONFORMANT

    @property
    def counts(self) -> Counter[str]:
        """How many sentences have each status."""
        return Counter(result.status for result in self.results)

    @property
    def meanings(self) -> dict[str, str]:
        """Every status that a sentence can have, and what it means."""
        return dict(_MEANINGS)

    @property
    def title(self) -> str:
        """What was tested, with its version."""
        version = f" {self.description.version}" if self.description else ""
        whose = f"{self.plugin} of driver {self.driver}" if self.plugin else f"Driver {self.driver}"
        return f"{whose}{version}"

    @property
    def checks(self) -> tuple[CheckResult, ...]:
        """Every check, by sentence."""
        return tuple(check for result in self.results for check in result.checks)

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain data: the content of ``verdict.json``."""
        description = self.description
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "driver": self.driver,
            "plugin": self.plugin,
            "version": description.version if description else "",
            "hypervisor": description.hypervisor if description else "",
            "hvcore": hvcore.__version__,
            "counts": {status: self.counts[status] for status in _MEANINGS},
            "claims": {
                claim.capability.value: claim.level.value
                for claim in (map(description.claim, Capability) if description else ())
            },
            "problems": list(self.problems),
            "requirements": [
                {
                    "id": result.requirement.id,
                    "operations": list(result.requirement.operations),
                    "status": result.status,
                    "checks": [attrs.asdict(check, filter=_not_requirement) for check in result.checks],
                }
                for result in self.results
            ],
        }

    def markdown(self) -> str:
        """The verdict as a page."""
        lines = [f"# {self.title}: {self.verdict}", "", "| sentences | |", "|---|---|"]
        lines += [f"| {self.counts[status]} | {status}: {meaning} |" for status, meaning in _MEANINGS.items()]
        lines += ["", *(f"- {problem}" for problem in self.problems), ""] if self.problems else [""]
        lines += ["| sentence | status | checks | |", "|---|---|---|---|"]
        for result in self.results:
            names = ", ".join(f"`{check.check}`" for check in result.checks)
            said = "; ".join(dict.fromkeys(check.message for check in result.checks if check.message))
            cell = said.replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {result.requirement.id} | {result.status} | {names} | {cell} |")
        return "\n".join(lines) + "\n"

    def write(self, directory: str) -> None:
        """Write ``verdict.json``, ``verdict.md`` and ``verdict.html``; the directory is made if it is not there."""
        os.makedirs(directory, exist_ok=True)
        for name, text in (
            ("verdict.json", json.dumps(self.as_dict(), indent=2) + "\n"),
            ("verdict.md", self.markdown()),
            ("verdict.html", verdict_page(self)),
        ):
            with open(os.path.join(directory, name), "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)


def _not_requirement(field: attrs.Attribute[Any], value: object) -> bool:
    return field.name != "requirement"


def judge(
    driver: str,
    description: DriverDescription | None,
    results: Iterable[CheckResult],
    problems: Iterable[str] = (),
    *,
    plugin: str = "",
    record: str = "",
) -> Verdict:
    """Put together what became of each check.

    Args:
        driver: name of the driver.
        description: what it says of itself, ``None`` when it could not be loaded.
        results: what became of each check.
        problems: what was wrong outside of any check.
        plugin: the plugin of a family that was tested; empty for the driver itself.
        record: name of the record that plugins of the family yield.
    """
    by_id: dict[str, list[CheckResult]] = {}
    for result in results:
        by_id.setdefault(result.requirement, []).append(result)
    return Verdict(
        driver=driver,
        description=description,
        results=tuple(
            _judge_one(requirement, by_id.get(requirement.id, []), description)
            for requirement in requirements()
            if requirement.binds(record)
        ),
        plugin=plugin,
        problems=tuple(problems),
    )


def _judge_one(
    requirement: Requirement, checks: list[CheckResult], description: DriverDescription | None
) -> RequirementResult:
    outcomes = [check.outcome for check in checks]
    status = "not-covered"
    if description is not None and not requirement.applies(description):
        status = "not-claimed"
    for outcome in ("failed", "not-probed", "passed", "absent", "not-claimed"):
        if outcome in outcomes:
            # Of several checks of a sentence, one that could not run leaves it open although others passed.
            status = _NOT_RUN.get(outcome, outcome)
            break
    return RequirementResult(requirement=requirement, status=status, checks=tuple(checks))


_TEXT = {"type": "string"}

VERDICT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Verdict of hvcore's conformance suite on a driver",
    "type": "object",
    "additionalProperties": False,
    "required": [
        *("schema", "verdict", "driver", "plugin", "version", "hypervisor", "hvcore"),
        *("counts", "claims", "problems", "requirements"),
    ],
    "properties": {
        "schema": {"const": SCHEMA},
        "verdict": {"enum": [CONFORMANT, PARTIAL, FAILED]},
        "driver": _TEXT,
        "plugin": _TEXT,
        "version": _TEXT,
        "hypervisor": _TEXT,
        "hvcore": _TEXT,
        "counts": {"type": "object", "required": list(_MEANINGS), "additionalProperties": {"type": "integer"}},
        "claims": {"type": "object", "additionalProperties": _TEXT},
        "problems": {"type": "array", "items": _TEXT},
        "requirements": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "operations", "status", "checks"],
                "properties": {
                    "id": {"type": "string", "pattern": r"^[A-Z]{2}-[0-9]{2}$"},
                    "operations": {"type": "array", "items": _TEXT},
                    "status": {"enum": list(_MEANINGS)},
                    "checks": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["check", "outcome", "message", "duration"],
                            "properties": {
                                "check": _TEXT,
                                "outcome": {"enum": ["passed", "failed", *_NOT_RUN]},
                                "message": _TEXT,
                                "duration": {"type": "number", "minimum": 0},
                            },
                        },
                    },
                },
            },
        },
    },
}
"""JSON Schema of ``verdict.json``."""
