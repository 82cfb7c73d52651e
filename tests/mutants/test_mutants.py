"""The suite is proved: every faulty driver is failed by the checks of the sentence it breaks, and the fake by none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import catalogue  # noqa: F401 - enters its mutants
import catalogue_backups  # noqa: F401
import catalogue_devices  # noqa: F401
import catalogue_facade  # noqa: F401
import catalogue_looking  # noqa: F401
import catalogue_moving  # noqa: F401
import catalogue_saving  # noqa: F401
import catalogue_snapshots  # noqa: F401
import pytest
from breaking import MUTANTS, checks_for, failures, load
from catalogue_drivers import NoHooks

import hvcore
from hvcore.conformance.run import arguments
from hvcore_fake import FakeDriver

REQUIREMENTS = sorted({requirement for requirement, _ in MUTANTS})


@pytest.mark.parametrize(
    ("requirement", "mutant"), MUTANTS, ids=[f"{requirement}-{mutant.__name__}" for requirement, mutant in MUTANTS]
)
def test_the_checks_of_a_sentence_fail_what_breaks_it(requirement: str, mutant: type) -> None:
    """A mutant is failed, for the sentence that it breaks."""
    found = failures(mutant, requirement)

    assert found, f"no check of {requirement} notices"
    assert {failure.requirement for failure in found} == {requirement}


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_the_checks_of_a_sentence_pass_the_fake(requirement: str) -> None:
    """The same checks find nothing wrong with the driver that the mutants are made of."""
    assert checks_for(requirement)
    assert [str(failure) for failure in failures(FakeDriver, requirement)] == []


def test_there_are_enough() -> None:
    """Thirty mutants, and the three that are wrong as a whole."""
    mutants = {mutant.__name__ for _, mutant in MUTANTS}
    assert len(mutants) >= 33
    assert {"EmptyDriver", "YesMan", "Liar"} <= mutants


def test_a_driver_without_hooks_is_not_even_loaded(tmp_path: Path) -> None:
    """All that is missing is said at once."""
    settings = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    with pytest.raises(hvcore.LoadError) as caught:
        load(NoHooks, settings)
    required = [operation for operation in hvcore.OPERATIONS if operation.capability is None]
    assert caught.value.findings.codes == ("missing-hook",) * len(required)


@pytest.fixture
def installed_mutant(tmp_path: Path) -> Path:
    """A distribution that offers a mutant as a driver, with a profile."""
    place = tmp_path / "site"
    information = place / "mutant-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mutant\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[hvcore.drivers]\nmutant = catalogue:SecondStartIsNoError\n"
        "[hvcore.conformance_profiles]\nmutant = hvcore_fake.conformance:profile\n"
    )
    return place


def test_the_whole_run_reports_a_mutant_as_failed(installed_mutant: Path, tmp_path: Path) -> None:
    """Through pytest, a mutant that is installed as a driver gets the verdict failed, with the sentence it breaks."""
    report = tmp_path / "report"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path), "-k", "lifecycle"]
    paths = [str(installed_mutant), str(Path(__file__).parent)]
    environment = {
        "PYTHONPATH": ":".join(paths),
        "PATH": "/usr/bin:/bin",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments("mutant", str(report))],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    verdict = json.loads((report / "verdict.json").read_text())
    assert verdict["verdict"] == "failed"
    failed = [row for row in verdict["requirements"] if row["status"] == "failed"]
    assert [row["id"] for row in failed] == ["LC-03"]
    assert "LC-03: a second start returned" in failed[0]["checks"][0]["message"]
    assert "driver mutant: failed" in done.stdout
