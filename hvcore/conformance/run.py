"""Running the suite on a driver, in a pytest of its own, and reading its verdict."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, cast

from hvcore.errors import HostError

SUITE = "hvcore.conformance.suite"
FAMILY_SUITE = "hvcore.conformance.family_suite"


def arguments(
    driver: str,
    report: str,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
    family: str = "",
) -> list[str]:
    """The arguments of pytest for a run on a driver, or on the plugin ``KIND:NAME`` of one of its families."""
    suite = FAMILY_SUITE if family else SUITE
    given = ["-p", "hvcore.conformance.plugin", "--pyargs", suite, "--hv-driver", driver, "--hv-report", report]
    given += ["--hv-family", family] if family else []
    given += ["--hv-settings", json.dumps(dict(settings))] if settings else []
    return given + [word for key, value in (options or {}).items() for word in ("--hv-option", f"{key}={value}")]


def run_suite(
    driver: str,
    *,
    report: str | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
    family: str = "",
    selection: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Run the suite on a driver.

    Args:
        driver: name of the driver.
        report: directory for ``verdict.json``, ``verdict.md``, ``verdict.html`` and ``pytest.log``; a temporary one
            when not given.
        settings: settings of the driver.
        options: options of its profile.
        family: ``KIND:NAME``, to test that plugin of a family of the driver instead.
        selection: an expression for pytest's ``-k``; with what it leaves out the verdict is at best partial.
        progress: let pytest's output pass to standard error.

    Returns:
        The content of ``verdict.json``.

    Raises:
        HostError: pytest is not installed, or it ended without a verdict.
    """
    missing = [name for name in ("pytest", "pytest_timeout") if importlib.util.find_spec(name) is None]
    if missing:
        raise HostError(f"{' and '.join(missing)} not installed", hint="install with pip install 'hvcore[conformance]'")
    with tempfile.TemporaryDirectory(prefix="hvc-") as own:
        directory = os.path.abspath(report or own)
        os.makedirs(directory, exist_ok=True)
        path, log = os.path.join(directory, "verdict.json"), os.path.join(directory, "pytest.log")
        if os.path.exists(path):
            os.unlink(path)
        # A configuration of its own: what lies in the directory of the caller must not change the verdict.
        configuration = os.path.join(own, "pytest.ini")
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(
                "[pytest]\naddopts = --strict-markers --tb=short -ra -p no:cacheprovider\nfilterwarnings = error\n"
            )
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            configuration,
            f"--rootdir={own}",
            "-p",
            "pytest_timeout",
            "--noconftest",
        ]
        command += arguments(driver, directory, settings, options, family) + (["-k", selection] if selection else [])
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        with open(log, "wb") as output:
            stream = sys.stderr.fileno() if progress else output
            subprocess.run(
                command, stdout=stream, stderr=stream, env=environment, stdin=subprocess.DEVNULL, check=False
            )
        try:
            with open(path, encoding="utf-8") as file:
                return cast("dict[str, Any]", json.load(file))
        except FileNotFoundError as error:
            with open(log, encoding="utf-8", errors="replace") as file:
                words = file.read()[-2000:]
            raise HostError(f"the suite ended without a verdict: {words or 'see above'}") from error
