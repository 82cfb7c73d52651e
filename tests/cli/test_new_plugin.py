"""``hv new-plugin``: every kind of package installs, passes its own tests, and is clean; mistakes leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import hvcore
from hvcore.cli.new_plugin import KINDS, package_files, write_package
from hvcore.cli.root import hv as command
from hvcore.errors import HostError

ROOT = Path(__file__).resolve().parents[2]
LONGEST = "a-name-of-thirty-two-characters0"
PARAMETERS = {
    "nic-mode": "nics[].params.segment",
    "security-model": "params.acme-new.niceness",
    "console-type": "params.acme-new.port",
}
"""A parameter of each kind that has some in driver kvm."""


def new_plugin(*arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; its exit status, output and errors."""
    result = CliRunner().invoke(command, ["new-plugin", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def own_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands in this process keep to ``tmp_path``."""
    monkeypatch.delenv("HV_DRIVER", raising=False)
    for kind in ("STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"HV_{kind}_DIRECTORY", str(tmp_path / "hv" / kind))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory for packages."""
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


@pytest.fixture
def installed(place: Path, tmp_path: Path, environment: dict[str, str]) -> Callable[[str], dict[str, str]]:
    """A function that makes a package and installs it; returns an environment in which it is there."""

    def make(kind: str) -> dict[str, str]:
        status, _, errors = new_plugin(kind, "acme-new", "--directory", place)
        assert status == 0, errors
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        source = str(place / "hvcore-acme-new")
        done = run("-m", "pip", "install", "-q", *options, "--target", str(tmp_path / "site"), source, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        searched = [str(tmp_path / "site"), *filter(None, [environment.get("PYTHONPATH")])]
        return {**environment, "PYTHONPATH": os.pathsep.join(searched)}

    return make


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=150, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_passes_its_own_tests_and_is_listed(
    kind: str, installed: Callable[[str], dict[str, str]], place: Path
) -> None:
    """Installed as it was made, its tests pass, ``hv`` lists it, and its parameters are there."""
    environment = installed(kind)
    package = place / "hvcore-acme-new"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", cwd=package, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr

    listed = json.loads(run("-m", "hvcore.cli", "plugins", "--json", env=environment).stdout)["plugins"]
    (found,) = [entry for entry in listed if entry["name"] == "acme-new" and entry["group"] == KINDS[kind].group]
    assert (found["distribution"], found["version"]) == ("hvcore-acme-new", "0.1.0")
    assert found["kind"].endswith(KINDS[kind].title.lower())
    assert found["summary"] == f"{KINDS[kind].title} acme-new of hvcore: {KINDS[kind].does}."

    if kind in PARAMETERS:
        shown = run("-m", "hvcore.cli", "params", "kvm", "acme-new", "--json", env=environment)
        paths = [row["path"] for row in json.loads(shown.stdout)["parameters"]]
        assert PARAMETERS[kind] in paths

    taken = run("-m", "hvcore.cli", "new-plugin", kind, "acme-new", "--directory", str(place.parent), env=environment)
    assert taken.returncode == 2
    assert "acme-new (hvcore-acme-new 0.1.0) is there already" in taken.stderr


def test_the_example_of_an_extension_runs(installed: Callable[[str], dict[str, str]], place: Path) -> None:
    """The host application in the package prints what the extension counted."""
    environment = installed("extension")
    done = run("example.py", cwd=place / "hvcore-acme-new", env=environment)
    assert "1 start_instance" in done.stdout.splitlines(), done.stderr


def test_a_driver_that_claims_too_much_fails(installed: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    """The profile of a new driver is a judge: what is claimed and not kept is found."""
    environment = installed("driver")
    (source,) = (tmp_path / "site").glob("*/plugin.py")
    text = source.read_text()
    claims = "hvcore.Claim(capability=Capability.PLAN),"
    assert claims in text
    source.write_text(text.replace(claims, f"{claims} hvcore.Claim(capability=Capability.GRACEFUL_STOP),"))
    done = run("-m", "hvcore.cli", "conformance", "acme-new", "--json", "-k", "stopping", env=environment)
    assert done.returncode == 1, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["verdict"] == "failed"
    assert "LC-10" in [row["id"] for row in verdict["requirements"] if row["status"] == "failed"]


@pytest.mark.parametrize("name", ["x", LONGEST])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_is_formatted_and_has_no_lint(kind: str, name: str, tmp_path: Path) -> None:
    """With a short name and with the longest, by the rules of this project."""
    write_package(str(tmp_path / "package"), package_files(kind, name))
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    # A test asserts, and the example of an extension prints.
    ignored = [*rules["ignore"], "S101", "S108", "T201"]
    common = ["--isolated", "--no-cache", "--line-length", "120", "--target-version", "py311"]
    convention = 'lint.pydocstyle.convention = "google"'
    chosen = ["--select", ",".join(rules["select"]), "--ignore", ",".join(ignored), "--config", convention]
    for arguments in (["format", "--check", "--diff", *common], ["check", *common, *chosen]):
        done = run("-m", "ruff", *arguments, ".", cwd=tmp_path / "package")
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_package_is_typed(tmp_path: Path) -> None:
    """The strictest mypy finds nothing, in the tests neither."""
    environment = {**os.environ, "MYPYPATH": "src"}
    for kind in KINDS:
        write_package(str(tmp_path / kind), package_files(kind, "acme-new"))
        # One cache: what they import is the same.
        arguments = ["-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "src", "tests"]
        done = run(*arguments, cwd=tmp_path / kind, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_template_is_used() -> None:
    """No kind leaves one out, and no placeholder is left in what they make."""
    made = {kind: package_files(kind, "acme-new") for kind in KINDS}
    for kind, files in made.items():
        names = {path.name.removesuffix(".tmpl") for path in (ROOT / "hvcore/templates" / kind).iterdir()}
        assert names <= {"test_plugin.py", *(path.rpartition("/")[2] for path in files)}
        for path, text in files.items():
            assert "@NAME" not in text, path
            assert text.isascii(), path
            assert text.endswith("\n") or not text, path
        project = tomllib.loads(files["pyproject.toml"])["project"]
        assert project["dependencies"][-1] == f"hvcore>={hvcore.__version__}"
        assert KINDS[kind].group in project["entry-points"]


def test_what_was_made_is_said(place: Path) -> None:
    """In words, and for machines."""
    status, output, _ = new_plugin("extension", "said", "--directory", place)
    assert status == 0
    assert "src/hvcore_said/plugin.py" in output
    status, output, _ = new_plugin("extension", "said-again", "--directory", place, "--json")
    document = json.loads(output)
    assert document["directory"] == str(place / "hvcore-said-again")
    for path in document["files"]:
        assert (place / "hvcore-said-again" / path).is_file()


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("nic-mode", "Upper", "is no name"),
        ("nic-mode", "under_score", "is no name"),
        ("nic-mode", "two--hyphens", "is no name"),
        ("nic-mode", "hyphen-", "is no name"),
        ("nic-mode", "7up", "is no name"),
        ("nic-mode", "../outside", "is no name"),
        ("nic-mode", "line\n", "is no name"),
        ("nic-mode", "ünder", "is no name"),
        ("nic-mode", "", "is no name"),
        ("nic-mode", LONGEST + "1", "is no name"),
        ("nic-mode", "user", "NIC mode user (hvcore "),
        ("extension", "audit", "Extension audit (hvcore "),
        ("nic-mode", "fake", "package hvcore_fake is there"),
        ("console-type", "machine", "params.machine"),
        ("security-model", "vnc", "params.vnc"),
    ],
)
def test_a_bad_name_is_one_error_and_leaves_nothing(kind: str, name: str, words: str, place: Path) -> None:
    """What cannot be a name of the kind, or is one already, is refused with the reason."""
    status, output, errors = new_plugin(kind, "--directory", place, "--", name)
    assert (status, output) == (2, "")
    assert words in errors
    assert "Traceback" not in errors
    assert list(place.iterdir()) == []


def test_an_unknown_kind_is_refused_with_those_there_are(place: Path) -> None:
    """A typing error shows the choice."""
    status, _, errors = new_plugin("nic", "acme", "--directory", place)
    assert status == 2
    assert all(kind in errors for kind in KINDS)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("what", ["directory", "file", "dangling link"])
def test_nothing_is_overwritten(what: str, place: Path) -> None:
    """Whatever has the name of the package stays what it is."""
    target = place / "hvcore-acme"
    if what == "directory":
        target.mkdir()
    elif what == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    before = os.lstat(target)
    status, output, errors = new_plugin("nic-mode", "acme", "--directory", place)
    assert (status, output) == (2, "")
    assert "is there already" in errors
    assert os.lstat(target) == before
    assert [path.name for path in place.iterdir()] == ["hvcore-acme"]


@pytest.mark.parametrize("where", ["missing", "file"])
def test_where_nothing_can_be_written_is_one_error(where: str, place: Path) -> None:
    """A directory that is none is an error of the host, with what to do."""
    (place / "file").write_text("")
    result = CliRunner().invoke(command, ["new-plugin", "nic-mode", "acme", "--directory", str(place / where)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"hv: error: cannot make {place / where}/hvcore-acme: ")
    assert "hint: give a directory you may write to" in result.stderr
    assert [path.name for path in place.iterdir()] == ["file"]


def test_a_directory_of_others_is_one_error(hv: Callable[..., Any], environment: dict[str, str]) -> None:
    """Where nobody can write, root neither."""
    done = hv("new-plugin", "nic-mode", "acme", "--directory", "/proc/self")
    assert done.returncode == 1
    assert done.stderr.startswith("hv: error: cannot make /proc/self/hvcore-acme: ")
    assert "Traceback" not in done.stderr


def test_a_write_that_fails_leaves_nothing(place: Path) -> None:
    """All or nothing: what was written before the failure goes with it."""
    files = {"README.md": "first", "README.md/second": "cannot be"}
    with pytest.raises(HostError, match="cannot make"):
        write_package(str(place / "hvcore-acme"), files)
    assert list(place.iterdir()) == []
