"""The conformance suite as it is run: on both shipped drivers, and on drivers that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hvcore
from hvcore.conformance import run
from hvcore.conformance.contract import requirements
from hvcore.conformance.verdict import VERDICT_SCHEMA

Verdict = dict[str, Any]
Run = Callable[..., tuple[Verdict, subprocess.CompletedProcess[str]]]

_VARIANTS = """
import attrs
import hvcore
from hvcore_fake import FakeDriver
from hvcore_fake.conformance import profile as fake_profile

class WithoutPause(FakeDriver):
    @hvcore.hookimpl
    def hv_describe_driver(self):
        found = super().hv_describe_driver()
        kept = tuple(claim for claim in found.claims if claim.capability is not hvcore.Capability.PAUSE)
        return attrs.evolve(found, name="variant", claims=kept)

def without_hanging(options):
    return attrs.evolve(fake_profile(options), driver="variant", hang=None, wait_ready=None)

def on_another_host(options):
    return attrs.evolve(fake_profile(options), driver="variant", missing="the machine room is locked")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a run: temporary files go below ``tmp_path``, and nothing may be left of them."""
    (tmp_path / "temporary").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"}


def _read(report: Path) -> Verdict:
    verdict: Verdict = json.loads((report / "verdict.json").read_text())
    jsonschema.validate(verdict, VERDICT_SCHEMA)
    assert [row["id"] for row in verdict["requirements"]] == [each.id for each in requirements() if each.binds("")]
    return verdict


def _rows(verdict: Verdict) -> dict[str, Verdict]:
    return {row["id"]: row for row in verdict["requirements"]}


@pytest.fixture
def hv(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs ``hv conformance`` and reads its report."""

    def conformance(*arguments: str) -> tuple[Verdict, subprocess.CompletedProcess[str]]:
        command = [sys.executable, "-m", "hvcore.cli", "conformance", *arguments, "--report", str(tmp_path / "report")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=580, check=False)
        return _read(tmp_path / "report"), done

    return conformance


@pytest.fixture
def variant(environment: dict[str, str], tmp_path: Path) -> Callable[..., Run]:
    """Installs a driver ``variant`` with a profile, and runs some of the suite on it, through pytest itself."""

    def install(driver: str, profile: str) -> Run:
        place = tmp_path / "site"
        information = place / "variant-1.0.dist-info"
        information.mkdir(parents=True)
        (place / "variant.py").write_text(_VARIANTS)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: variant\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[hvcore.drivers]\nvariant = {driver}\n[hvcore.conformance_profiles]\nvariant = {profile}\n"
        )
        own = {**environment, "PYTHONPATH": str(place), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        common = ["-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-rs"]

        def pytest_on(*more: str) -> tuple[Verdict, subprocess.CompletedProcess[str]]:
            given = run.arguments("variant", str(tmp_path / "report"))
            command = [sys.executable, "-m", "pytest", *common, *given, *more]
            done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=120, check=False)
            return _read(tmp_path / "report"), done

        return pytest_on

    return install


def test_driver_fake_is_conformant(hv: Run, tmp_path: Path) -> None:
    """Every sentence that binds the fake driver and has a check is kept; nothing is left of the run."""
    verdict, done = hv("fake")
    assert done.stdout.startswith("Driver fake"), done.stderr
    assert verdict["verdict"] == "conformant", done.stdout
    assert done.returncode == 0
    assert (tmp_path / "report/verdict.md").read_text().startswith("# Driver fake")
    assert "<h1>Driver fake" in (tmp_path / "report/verdict.html").read_text()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_driver_kvm_is_conformant(hv: Run, tmp_path: Path) -> None:
    """So it is with real QEMU processes, for everything that the driver claims."""
    verdict, done = hv("kvm", "--json")
    assert json.loads(done.stdout) == verdict
    failed = [check for row in verdict["requirements"] for check in row["checks"] if check["outcome"] == "failed"]
    assert verdict["verdict"] == "conformant", json.dumps(failed, indent=1)
    assert failed == []
    assert done.returncode == 0
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_part_of_the_suite_is_never_conformant(hv: Run) -> None:
    """What was not selected was not run."""
    verdict, done = hv("fake", "-k", "console")
    assert done.returncode == 1
    assert verdict["verdict"] == "partial"
    assert _rows(verdict)["CO-01"]["status"] == "passed"
    assert {check["message"] for check in _rows(verdict)["LC-01"]["checks"]} == {"it was not run"}


def test_what_cannot_be_provoked_makes_the_verdict_partial(variant: Callable[..., Run]) -> None:
    """A check that the profile has no means for is skipped before it begins, and named."""
    verdict, done = variant("hvcore_fake.plugin:FakeDriver", "variant:without_hanging")("-k", "queries")
    assert verdict["verdict"] == "partial"
    rows = _rows(verdict)
    assert (rows["QU-03"]["status"], rows["QU-04"]["status"]) == ("not-run", "passed")
    assert rows["QU-03"]["checks"][0]["message"] == "the profile of driver variant has no hang"
    assert "not-probed: the profile of driver variant has no hang" in done.stdout
    assert done.returncode == 1


def test_a_host_that_cannot_run_the_driver_makes_the_verdict_partial(variant: Callable[..., Run]) -> None:
    """Nothing is run that starts an instance, and the reason is that of the profile."""
    verdict, _ = variant("hvcore_fake.plugin:FakeDriver", "variant:on_another_host")()
    assert verdict["verdict"] == "partial"
    passed = {row["id"] for row in verdict["requirements"] if row["status"] == "passed"}
    assert passed == {"ER-07", "LD-01", "LD-02", "LD-03", "LD-04"}
    assert verdict["counts"]["failed"] == 0
    assert _rows(verdict)["LC-01"]["checks"][0]["message"] == "the machine room is locked"


def test_a_declined_capability_is_tested_to_be_refused(variant: Callable[..., Run]) -> None:
    """What is not claimed is no fault: its checks are not run, and that it is refused is checked."""
    verdict, done = variant("variant:WithoutPause", "hvcore_fake.conformance:profile")("-k", "lifecycle or errors")
    rows = _rows(verdict)
    assert verdict["counts"]["failed"] == 0, done.stdout
    assert rows["LC-22"]["status"] == "not-claimed"
    assert rows["ER-08"]["status"] == "passed"


_OWN_CHECKS = """
import os, threading
import pytest
from hvcore.conformance import check

@check("LC-01")
def skips_when_it_sees_fit(subject):
    pytest.skip("not today")

@check("LC-03")
def leaves_a_descriptor(subject):
    os.open("/dev/null", os.O_RDONLY)

@check("LC-22")
def leaves_a_file(subject):
    name = subject.start()
    with open(f"{subject.driver.directories.state}/{name}.lease", "w"):
        pass

@check("LC-23")
def raises(subject):
    {}["nothing"]
"""
_OWN_TESTS = """
import own_checks
from hvcore.conformance.suite.collection import each_check

@each_check(own_checks)
def test_own(check, subject):
    check.run(subject)
"""


def test_late_skips_leaks_and_broken_checks_are_failures(environment: dict[str, str], tmp_path: Path) -> None:
    """A skip that nobody decided beforehand, whatever a test leaves, and a defect of a check fail the run."""
    (tmp_path / "own_checks.py").write_text(_OWN_CHECKS)
    (tmp_path / "test_own.py").write_text(_OWN_TESTS)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    command += ["-p", "hvcore.conformance.plugin", "--hv-driver", "fake", "--hv-report", str(tmp_path / "report")]
    own = {**environment, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "test_own.py")], capture_output=True, text=True, env=own, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rows = _rows(_read(tmp_path / "report"))
    said = {
        name: next(c["message"] for c in rows[name]["checks"] if c["outcome"] == "failed")
        for name in ("LC-01", "LC-03", "LC-22", "LC-23")
    }
    assert "a skip comes from a claim or a probe" in said["LC-01"]
    assert "is left open: /dev/null" in said["LC-03"]
    assert "left after cleanup" in said["LC-22"]
    assert "KeyError" in said["LC-23"]


def test_a_driver_without_a_profile_is_said(hv: Run) -> None:
    """The verdict is failed, and says that there is no profile."""
    verdict, done = hv("nobody")
    assert (verdict["verdict"], done.returncode) == ("failed", 1)
    assert "has no conformance profile" in done.stdout


def test_pytest_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra there is a sentence that names it."""
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(hvcore.HostError, match="hvcore\\[conformance\\]"):
        run.run_suite("fake")
