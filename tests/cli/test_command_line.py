"""The command line itself: help, global options, usage errors, tables, completion."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import hvcore
from hvcore.cli.root import COMMANDS, hv
from hvcore.cli.session import Session

from_python = [sys.executable, "-c"]


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; its exit status, output and errors."""
    result = CliRunner().invoke(hv, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def own_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands in this process keep to ``tmp_path``."""
    monkeypatch.delenv("HV_DRIVER", raising=False)
    for kind in ("STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"HV_{kind}_DIRECTORY", str(tmp_path / kind))


def test_help_lists_commands_and_exit_statuses() -> None:
    """The help has every command, imports none, and documents the exit statuses."""
    status, output, _ = invoke("--help")
    assert status == 0
    assert all(f"\n  {name} " in output for name in COMMANDS)
    assert "Exit status: 0 done; 1 failed; 2 wrong usage" in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name: str) -> None:
    """The first sentence of a command's help is its summary in the list."""
    status, output, _ = invoke(name, "--help")
    assert status == 0
    assert COMMANDS[name][1].split(":")[0].rstrip(".").split(",")[0] in " ".join(output.split())


def test_help_imports_no_command() -> None:
    """Only the module of the command that is called is imported, and nothing heavy."""
    code = (
        "import sys\nfrom hvcore.cli.root import hv\n"
        "try: hv.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m in ('rich', 'cattrs', 'psutil', 'hvcore.cli.queries', 'hvcore.driver')])"
    )
    done = subprocess.run([*from_python, code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_libraries_it_says_what_to_install(missing: str) -> None:
    """Without the extra, a sentence instead of a traceback."""
    code = f"import sys\nsys.modules[{missing!r}] = None\nfrom hvcore.cli import main\nmain()"
    done = subprocess.run([*from_python, code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'hvcore[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_names_the_nearest() -> None:
    """A typing error is answered with what may have been meant."""
    status, output, errors = invoke("puase")
    assert (status, output) == (2, "")
    assert "Did you mean 'pause'?" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("stop", "a", "--force", "--no-escalate"),
        ("start", "a.toml", "--timeout", "30"),
        ("list", "--setting", "nonsense"),
        ("params", "a", "b", "c"),
        ("start", "a.toml", "--json", "--console"),
        ("demo", "--json"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    """What is wrong with the command line is told, and nothing is printed as a result."""
    status, output, errors = invoke(*arguments)
    assert (status, output) == (2, "")
    assert errors


@pytest.mark.parametrize("arguments", [("--json", "info"), ("info", "--json")])
def test_usage_errors_are_json_on_request(arguments: tuple[str, ...]) -> None:
    """Machines read usage errors as they read all others."""
    _, output, errors = invoke(*arguments)
    assert output == ""
    assert json.loads(errors)["error"]["code"] == "usage"


@pytest.mark.parametrize("arguments", [("--json", "plugins"), ("plugins", "--json")])
def test_json_goes_before_or_after_the_command(arguments: tuple[str, ...]) -> None:
    """Global options are accepted in both places."""
    status, output, _ = invoke(*arguments)
    assert status == 0
    entry = {"group": "hvcore.drivers", "name": "kvm", "value": "hvcore_kvm.plugin:KvmDriver"}
    assert any(entry.items() <= found.items() for found in json.loads(output)["plugins"])


def test_plugins_are_listed_without_being_imported() -> None:
    """Names come from metadata: a broken plugin can be seen."""
    code = (
        "import sys\nfrom hvcore.cli.root import hv\n"
        "try: hv.main(['plugins'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('hvcore_kvm', 'hvcore_fake'))])"
    )
    done = subprocess.run([*from_python, code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    assert "\nkvm nic mode " in done.stdout
    assert done.stdout.startswith("KIND ")


_SEVERAL = """
    \"\"\"Two plugins that cannot be imported.\"\"\"

    raise RuntimeError("imported")

    class Counter:
        \"\"\"Counts what it sees.\"\"\"
"""


def test_each_plugin_has_a_summary_although_none_is_imported(install: Any, tmp_path: Path) -> None:
    """Of its class, its module or its distribution, read as text; what is broken is listed all the same."""
    groups = {"hvcore__extensions": {"counter": "acme_two:Counter"}, "hvcore_kvm__nic_modes": {"second": "acme_two"}}
    install("acme-two", "acme_two", _SEVERAL, **groups)
    install("acme-one", "acme_one", "def (", hvcore_kvm__console_types={"first": "acme_one"})
    metadata = tmp_path / "site" / "acme_one-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Summary: The only one.\n")
    install("acme-broken", "acme_broken", "def (", hvcore_kvm__nic_modes={"syntax": "acme_broken"})
    install("acme-gone", "acme_gone", "", hvcore_kvm__nic_modes={"gone": "no.such.module"})
    code = (
        "import sys\nfrom hvcore.cli.root import hv\n"
        "try: hv.main(['plugins', '--json'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('hvcore_kvm', 'hvcore_fake', 'acme', 'hvcore.extensions'))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([*from_python, code], capture_output=True, text=True, check=True, env=environment)
    listed, _, imported = done.stdout.rstrip("\n").rpartition("\n")
    assert imported == "[]"
    plugins = json.loads(listed)["plugins"]
    found = {(row["distribution"], row["name"]): row["summary"] for row in plugins if row["name"] != "profile"}
    assert found["acme-two", "counter"] == "Counts what it sees."
    assert found["acme-two", "second"] == "Two plugins that cannot be imported."
    assert found["acme-one", "first"] == "The only one."
    assert (found["acme-broken", "syntax"], found["acme-gone", "gone"]) == ("", "")
    assert found["hvcore", "openvswitch"] == "A tap on a bridge of Open vSwitch."
    assert [key for key, summary in found.items() if not summary and key[0] == "hvcore"] == []


def test_an_unknown_driver_is_told_with_those_there_are() -> None:
    """A driver that is not installed is invalid input."""
    status, output, errors = invoke("--driver", "nosuch", "list")
    assert (status, output) == (2, "")
    assert "installed: " in errors


def test_an_option_after_the_command_overrules_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is the weakest, whatever the place of the option."""
    monkeypatch.setenv("HV_DRIVER", "nosuch")
    assert invoke("list")[0] == 2
    assert invoke("list", "--driver", "kvm")[0] == 0
    assert invoke("--driver", "kvm", "list")[0] == 0


def test_settings_reach_the_driver() -> None:
    """A setting that the driver does not know is its finding."""
    status, _, errors = invoke("list", "--setting", "nonsense=1")
    assert status == 2
    assert "nonsense" in errors


def test_tables_are_plain_text_in_a_pipe() -> None:
    """Elsewhere than on a terminal, tables have stable columns and neither colour nor lines."""
    status, output, _ = invoke("params", "kvm", "accel")
    assert status == 0
    header, row, *_ = output.splitlines()
    assert header.split() == ["PATH", "TYPE", "DEFAULT", "CHOICES", "ON", "THIS", "HOST", "SUMMARY"]
    assert row.split()[:3] == ["params.accel", "text", "auto"]
    assert row.index("auto kvm tcg") == header.index("CHOICES")
    assert output.isascii()


@pytest.mark.parametrize("option", [[], ["--no-color"]])
def test_tables_have_lines_on_a_terminal(option: list[str]) -> None:
    """On a terminal a table has lines, and colours unless they are not wanted."""
    master, slave = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    subprocess.run(
        [sys.executable, "-m", "hvcore.cli", "plugins", *option],
        stdin=slave,
        stdout=slave,
        env={**environment, "TERM": "xterm"},
        check=True,
    )
    os.close(slave)
    shown = b""
    # With nobody on its other side any more, a terminal that has been read to its end says EIO.
    with contextlib.suppress(OSError):
        while True:
            shown += os.read(master, 65536)
    os.close(master)
    assert "──".encode() in shown
    assert (b"\x1b[" in shown) is not bool(option)


def test_parameters_are_data_on_request() -> None:
    """The rows of ``hv params`` come with all that was declared; the schema is one of a whole file."""
    rows = json.loads(invoke("params", "--json")[1])["parameters"]
    accel = next(row for row in rows if row["path"] == "params.accel")
    assert accel["choices"] == ["auto", "kvm", "tcg"]
    assert accel["since"] == "0.1"
    schema = json.loads(invoke("params", "--schema")[1])
    assert schema["required"] == ["name"]


def test_a_bug_is_a_sentence_and_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong, people read a sentence first."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Session, "driver", broken)
    status, output, errors = invoke("list")
    assert (status, output) == (1, "")
    assert "ZeroDivisionError: of all things" in errors
    assert "--debug" in errors
    assert "Traceback" not in errors
    assert "Traceback" in invoke("list", "--debug")[2]
    assert json.loads(invoke("list", "--json")[2])["error"]["code"] == "bug"


def test_what_is_logged_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a driver that goes on after an error; the traceback is for who asks."""

    def logging_driver(*_: object) -> None:
        try:
            raise hvcore.OperationFailed("it\x1b[2J broke", hint="mend it")
        except hvcore.OperationFailed:
            logging.getLogger("some_driver").warning("%s is not completed", "this", exc_info=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "driver", logging_driver)
    before = list(logging.getLogger().handlers)
    assert invoke("list")[2].splitlines()[0] == "hv: warning: this is not completed: it\\x1b[2J broke"
    assert "Traceback" not in invoke("list")[2]
    assert "Traceback" in invoke("list", "--debug")[2]
    assert logging.getLogger().handlers == before


def test_interrupted_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no bug."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "driver", interrupted)
    status, _, errors = invoke("list")
    assert status == 130
    assert "interrupted" in errors


@pytest.mark.parametrize(("kind", "expected"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_interrupted_says_what_is_then(monkeypatch: pytest.MonkeyPatch, kind: BaseException, expected: int) -> None:
    """What the undo has noted, for people and for machines, whichever signal it was."""

    def interrupted(*_: object) -> None:
        raise kind

    kind.add_note("undoing: a\x1bfile is left")
    monkeypatch.setattr(Session, "driver", interrupted)
    status, _, errors = invoke("list")
    assert status == expected
    assert "note: undoing: a\\x1bfile is left" in errors
    status, output, errors = invoke("list", "--json")
    assert (status, output) == (expected, "")
    found = json.loads(errors)["error"]
    assert (found["code"], found["notes"]) == ("interrupted", ["undoing: a\x1bfile is left"])


@pytest.mark.parametrize("driver", ["kvm", "nosuch"])
def test_completion_never_fails(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completing a name asks the driver, and is silent when it cannot be asked."""
    for name, value in (("_HV_COMPLETE", "bash_complete"), ("COMP_WORDS", "hv stop we"), ("COMP_CWORD", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HV_DRIVER", driver)
    result = CliRunner().invoke(hv, [], prog_name="hv")
    assert result.exit_code == 0
    assert result.stdout == "file,we\n"
    assert result.stderr == ""
