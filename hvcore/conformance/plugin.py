"""The pytest plugin: ``pytest -p hvcore.conformance.plugin --pyargs hvcore.conformance.suite --hv-driver NAME``.

It loads the driver and its profile once, decides before anything runs which checks are not run and why, gives every
check a driver on directories of its own, counts what is left after each, and makes the verdict from the reports. A skip
that was not decided here is a failure.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from hvcore.capabilities import DriverDescription
from hvcore.conformance.check import Check, Reason
from hvcore.conformance.failure import ConformanceFailure
from hvcore.conformance.family import FamilySuite
from hvcore.conformance.profile import ConformanceProfile, load_profile
from hvcore.conformance.subject import Loader, Subject, loader_of
from hvcore.conformance.verdict import CONFORMANT, CheckResult, Verdict, judge
from hvcore.driver import Driver
from hvcore.errors import HypervisorError
from hvcore.registry import load_driver

FAMILY_SUITE = "hvcore.conformance.family_suite"

_TIME_LIMIT = 120
_NAME, _REQUIREMENT, _REASON, _MESSAGE = "hv_check", "hv_requirement", "hv_reason", "hv_message"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of a run."""
    group = parser.getgroup("hvcore conformance")
    group.addoption("--hv-driver", metavar="NAME", help="driver to test")
    group.addoption("--hv-settings", metavar="JSON", default="{}", help="settings of the driver, as a JSON object")
    group.addoption("--hv-option", metavar="KEY=VALUE", action="append", default=[], help="option of its profile")
    group.addoption("--hv-family", metavar="KIND:NAME", help="test this plugin of a family of the driver instead")
    group.addoption("--hv-report", metavar="DIR", help="where verdict.json, verdict.md and verdict.html are written")


def pytest_configure(config: pytest.Config) -> None:
    """Load the driver and its profile."""
    config.addinivalue_line("markers", "requirement(id): sentence of the contract that the test is about")
    config.addinivalue_line("markers", "timeout(seconds): time limit of the test")
    if config.option.hv_driver:
        config.stash[_RUN] = Run(config)
        config.pluginmanager.register(config.stash[_RUN], "hvcore conformance run")


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The driver on directories of its own; afterwards everything is put away, and what is left is counted."""
    run = request.config.stash.get(_RUN, None)
    if run is None:
        pytest.fail("name the driver to test with --hv-driver", pytrace=False)
    directory = tempfile.mkdtemp(prefix="hvc-")
    try:
        subject = run.subject(directory)
        yield subject
        subject.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Run:
    """One run on one driver."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._driver: str = config.option.hv_driver
        self._results: dict[str, CheckResult] = {}
        self._problems: list[str] = []
        self._family: FamilySuite | None = None
        self._plugin = ""
        self._reasons: dict[str, Reason] = {}
        self._description: DriverDescription | None = None
        self._scratch = tempfile.mkdtemp(prefix="hvc-")
        self.load: Loader = loader_of(load_driver, self._driver)
        try:
            self._options = dict(text.split("=", 1) for text in config.option.hv_option)
            self._settings: dict[str, Any] = json.loads(config.option.hv_settings)
            self.profile: ConformanceProfile = self._choose(config.option.hv_family)
            self._reasons = self._decide()
        except (HypervisorError, ValueError) as error:
            self._problems.append(str(error))
            self._write()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise pytest.UsageError(str(error)) from error

    def _choose(self, family: str | None) -> ConformanceProfile:
        """The profile of the driver, or of a plugin of one of its families."""
        if not family:
            return load_profile(self._driver, self._options)
        kind, colon, name = family.partition(":")
        profile = load_profile(self._driver)
        if not colon or kind not in profile.families:
            known = ", ".join(profile.families) or "none"
            raise ValueError(f"{family!r} is no KIND:NAME of driver {self._driver}; its kinds: {known}")
        self._family = profile.families[kind]
        self._plugin = f"{self._family.title} {name}"
        return self._family.profile(name, self._options)

    def _checks(self) -> tuple[Check, ...]:
        if self._family is not None:
            return self._family.checks
        from hvcore.conformance.checks import CHECKS  # after the driver: what it breaks is its own

        return CHECKS

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """The checks of a family are known here alone."""
        if metafunc.module.__name__.startswith(FAMILY_SUITE) and "check" in metafunc.fixturenames:
            chosen = self._family.checks if self._family is not None else ()
            marks = [pytest.param(c, id=c.name, marks=pytest.mark.requirement(c.requirement)) for c in chosen]
            metafunc.parametrize("check", marks)

    def _decide(self) -> dict[str, Reason]:
        """Ask driver and profile once, before any test, which checks are not run."""
        roots = {f"{kind}_directory": f"{self._scratch}/{kind}" for kind in ("state", "data", "cache")}
        with self.load({**roots, **self.profile.settings, **self._settings}, ()) as driver:
            self._description = driver.description
            found = {}
            missing = self.profile.missing
            if not missing and self.profile.probe is not None:
                missing = self.profile.probe(driver)
            for check in self._checks():
                reason = check.reason_not_to_run(driver, self.profile)
                if missing and check.starts and (reason is None or reason.kind == "not-probed"):
                    reason = Reason(kind="not-probed", text=missing)
                if reason is not None:
                    found[_id(check)] = reason
        return found

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip what was decided not to be run."""
        for item in items:
            check = _check_of(item)
            if check is None:
                continue
            reason = self._reasons.get(_id(check))
            item.user_properties += [(_NAME, _id(check)), (_REQUIREMENT, check.requirement)]
            item.add_marker(pytest.mark.timeout(_TIME_LIMIT))
            if reason is not None:
                item.user_properties.append((_REASON, (reason.kind, reason.text)))
                item.add_marker(pytest.mark.skip(reason=f"{reason.kind}: {reason.text}"))

    def subject(self, directory: str) -> Subject:
        """The driver on directories of its own; what drivers can make again is shared by all tests."""
        return Subject(self._load_with_settings, self.profile, directory, f"{self._scratch}/cache")

    def _load_with_settings(self, settings: Mapping[str, Any], extensions: Sequence[object]) -> Driver:
        return self.load({**self._settings, **settings}, extensions)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
        """A skip that nobody decided beforehand is a failure."""
        report: pytest.TestReport = yield
        known = dict(item.user_properties)
        if report.skipped and _NAME in known and _REASON not in known:
            report.outcome = "failed"
            report.longrepr = "skipped by the test itself: a skip comes from a claim or a probe, before the test"
        elif report.failed and call.excinfo is not None:
            failure = isinstance(call.excinfo.value, ConformanceFailure)
            said = str(call.excinfo.value) if failure else call.excinfo.exconly()
            report.user_properties.append((_MESSAGE, said))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the outcome of one phase of one check."""
        known: dict[str, Any] = dict(report.user_properties)
        name = known.get(_NAME)
        if name is None:
            return
        before = self._results.get(name)
        duration = report.duration + (before.duration if before else 0.0)
        outcome, message = "passed", ""
        if _REASON in known:
            outcome, message = known[_REASON]
        elif report.failed:
            said = known.get(_MESSAGE) or str(report.longrepr)
            outcome, message = "failed", said if report.when == "call" else f"{report.when}: {said}"
        if before is not None and before.outcome == "failed":
            outcome, message = "failed", "; ".join(filter(None, (before.message, message)))
        self._results[name] = CheckResult(
            check=name,
            requirement=known[_REQUIREMENT],
            outcome=outcome,
            message=message[:4000],
            duration=round(duration, 3),
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """What cannot be collected is a problem of the run."""
        if report.failed:
            self._problems.append(f"{report.nodeid} cannot be collected: {report.longrepr}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Make the verdict."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        if hasattr(self._config, "workerinput"):
            return
        if self._write() != CONFORMANT and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say the verdict."""
        verdict = self._verdict()
        counts = ", ".join(f"{count} {status}" for status, count in sorted(verdict.counts.items()))
        whose = f"{self._plugin} of driver {self._driver}" if self._plugin else f"driver {self._driver}"
        terminalreporter.write_line(f"{whose}: {verdict.verdict} ({counts})")

    def _verdict(self) -> Verdict:
        # What was deselected, or never came to its turn, must not look as if there were no check of it.
        checks = () if self._description is None else self._checks()
        idle = [check for check in checks if _id(check) not in self._results]
        reasons = {_id(check): self._reasons.get(_id(check), _NOT_RUN) for check in idle}
        results = [
            CheckResult(
                check=_id(check),
                requirement=check.requirement,
                outcome=reasons[_id(check)].kind,
                message=reasons[_id(check)].text,
            )
            for check in idle
        ]
        return judge(
            self._driver,
            self._description,
            [*self._results.values(), *results],
            self._problems,
            plugin=self._plugin,
            record=self._family.record if self._family is not None else "",
        )

    def _write(self) -> str:
        verdict = self._verdict()
        if self._config.option.hv_report:
            verdict.write(self._config.option.hv_report)
        return verdict.verdict


_RUN = pytest.StashKey[Run]()
_NOT_RUN = Reason(kind="not-probed", text="it was not run")


def _id(check: Check) -> str:
    return f"{check.topic}.{check.name}"


def _check_of(item: pytest.Item) -> Check | None:
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("check") if callspec is not None else None
    return found if isinstance(found, Check) else None
