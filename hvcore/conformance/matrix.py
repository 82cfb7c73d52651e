"""Which sentence of the contract has which checks, and which mutants they are proved with.

``python -m hvcore.conformance.matrix`` writes ``docs/reference/contract-matrix.md`` and the shipped copy of the
sentences from a working copy of the project; with ``--check`` it compares, writes nothing, and ends with 1 when a file
is not what it is made from.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from hvcore.conformance.check import Check
from hvcore.conformance.checks import CHECKS
from hvcore.conformance.contract import Requirement, as_json, read_contract
from hvcore.conformance.profile import PROFILE_GROUP, load_profile

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ROOT / "docs" / "contract.md"
MUTANTS = ROOT / "tests" / "mutants"
PAGE = ROOT / "docs" / "reference" / "contract-matrix.md"
SHIPPED = Path(__file__).resolve().parent / "contract.json"

_NOTICE = "<!-- Written by python -m hvcore.conformance.matrix; do not edit. -->"


def read_mutants(directory: Path = MUTANTS) -> dict[str, list[str]]:
    """The mutants by the sentence they break: classes decorated with ``@breaks("ID")``, from their source."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for requirement in _broken(node):
                    found.setdefault(requirement, []).append(node.name)
    return found


def _broken(node: ast.ClassDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "breaks":
            yield from (str(word.value) for word in decorator.args if isinstance(word, ast.Constant))


def all_checks() -> tuple[Check, ...]:
    """The checks of drivers, and those of the families of the drivers that are installed."""
    names = sorted({point.name for point in metadata.entry_points(group=PROFILE_GROUP)})
    suites = [suite for name in names for suite in load_profile(name).families.values()]
    return tuple(dict.fromkeys([*CHECKS, *(check for suite in suites for check in suite.checks)]))


def matrix(sentences: tuple[Requirement, ...], mutants: Mapping[str, list[str]]) -> str:
    """The page."""
    checks: dict[str, list[str]] = {}
    every = all_checks()
    for check in every:
        checks.setdefault(check.requirement, []).append(f"{check.topic}.{check.name}")
    unknown = sorted({*checks, *mutants} - {sentence.id for sentence in sentences})
    if unknown:
        raise SystemExit(f"there are no sentences {', '.join(unknown)} in the contract")
    covered = [sentence.id for sentence in sentences if sentence.id in checks]
    proved = [found for found in covered if found in mutants]
    lines = [_NOTICE, "", "# Contract matrix", ""]
    faulty_drivers = len({name for names in mutants.values() for name in names})
    lines += [
        f"The [contract](../contract.md) has {len(sentences)} sentences.",
        f"The [conformance suite](../conformance.md) has {len(every)} checks for {len(covered)} of them.",
        f"{faulty_drivers} mutants, faulty drivers and plugins, prove the checks of {len(proved)} sentences.",
        "Each mutant is failed by a check of the sentence it breaks.",
        "Some sentences are kept by the facade whatever a driver does; their mutants bring a faulty part of it.",
        "A sentence that is not covered may have tests of another kind, below `tests` in the source.",
        "",
        "| sentence | operations | checks | mutants |",
        "|---|---|---|---|",
    ]
    for sentence in sentences:
        about = ", ".join(f"`{name}`" for name in sentence.operations) or "all"
        tests = ", ".join(f"`{name}`" for name in checks.get(sentence.id, ())) or "not covered"
        faulty = ", ".join(f"`{name}`" for name in mutants.get(sentence.id, ())) or " "
        lines.append(f"| {sentence.id} | {about} | {tests} | {faulty} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write both files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing, exit 1 when a file differs")
    check = parser.parse_args(arguments).check
    sentences = read_contract(CONTRACT.read_text(encoding="utf-8"))
    stale = []
    for path, text in ((PAGE, matrix(sentences, read_mutants())), (SHIPPED, as_json(sentences))):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        sys.stdout.write(f"{path} {'is not what it is made from' if check else 'written'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
