"""What needs no driver: plain data, settings, errors, exit statuses, instance files."""

from __future__ import annotations

import enum
import math
from pathlib import Path

import attrs
import click
import pytest

from hvcore import errors
from hvcore.cli.duration import read_duration
from hvcore.cli.exit_status import ExitStatus, exit_status
from hvcore.cli.failure import error_lines
from hvcore.cli.hotplug import peripheral
from hvcore.cli.instance_file import checked_instance, instance_name, read_instance_file
from hvcore.cli.output import printable
from hvcore.cli.plain_data import plain_data
from hvcore.cli.progress_line import ProgressLine
from hvcore.cli.session import setting_value
from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet
from hvcore.model.progress import Progress
from hvcore.model.state import Cause, InstanceInfo, InstanceState, StateReason

NOTHING = FindingSet()


class _Color(enum.Enum):
    RED = 1.5


@attrs.frozen(kw_only=True)
class _Box:
    color: _Color
    content: object


def test_records_become_plain_data() -> None:
    """Records become mappings, enumerations their values, and nothing JSON cannot hold is left."""
    given = _Box(color=_Color.RED, content={"a": (1, True, None), "b": {2}, "c": b"\0", "d": Path("/x")})
    assert plain_data(given) == {
        "color": 1.5,
        "content": {"a": [1, True, None], "b": [2], "c": "AA==", "d": "/x"},
    }


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinite_numbers_become_none(value: float) -> None:
    """JSON has no infinite numbers."""
    assert plain_data([value]) == [None]


def test_nested_records_become_plain_data() -> None:
    """A record of the model comes out whole."""
    info = InstanceInfo(name="a", state=InstanceState.RUNNING, reason=StateReason(cause=Cause.STARTED))
    plain = plain_data(info)
    assert isinstance(plain, dict)
    assert plain["state"] == "running"
    assert plain["reason"] == {"cause": "started", "detail": "", "since": None, "boot_id": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("true", True),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("/usr/bin/qemu", "/usr/bin/qemu"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_settings_are_toml_values_or_text(text: str, value: object) -> None:
    """A setting is what TOML makes of it, else the text itself; it cannot bring along a second one."""
    assert setting_value(text) == value


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.HypervisorError("m"), ExitStatus.FAILED),
        (errors.HypervisorRefused("r", "c", "t"), ExitStatus.FAILED),
        (errors.OperationFailed("m"), ExitStatus.FAILED),
        (errors.DeadlineExceeded("m"), ExitStatus.FAILED),
        (errors.SpawnFailed("m"), ExitStatus.FAILED),
        (errors.HostError("m"), ExitStatus.FAILED),
        (errors.RecordError("m"), ExitStatus.FAILED),
        (errors.DriverFault("m"), ExitStatus.FAILED),
        (errors.InvalidParameters("m", NOTHING), ExitStatus.INVALID),
        (errors.LoadError("m", NOTHING), ExitStatus.INVALID),
        (errors.InstanceNotFound("m"), ExitStatus.NOT_THERE),
        (errors.NotRunning("m"), ExitStatus.NOT_THERE),
        (errors.InstanceBusy("m"), ExitStatus.BUSY),
        (errors.AlreadyRunning("m"), ExitStatus.BUSY),
        (errors.WrongState("m"), ExitStatus.BUSY),
        (errors.UnsupportedOperation("m"), ExitStatus.UNSUPPORTED),
        (errors.PolicyDenied("m"), ExitStatus.UNSUPPORTED),
        (errors.OutcomeUnknown("m"), ExitStatus.UNKNOWN),
    ],
)
def test_every_error_has_its_exit_status(error: errors.HypervisorError, status: ExitStatus) -> None:
    """Scripts can tell from the exit status what kind of error it was."""
    assert exit_status(error) is status


def test_an_error_is_told_with_everything_known_of_it() -> None:
    """What, where, every finding on a line of its own, then the hint."""
    findings = FindingSet([Finding(code="a", path="p", message="m", hint="h"), Finding(code="b", message="n")])
    error = errors.InvalidParameters("it is wrong", findings, instance="web1", hint="read the manual")
    error.driver, error.operation = "kvm", "start_instance"
    assert list(error_lines(error)) == [
        "instance web1: it is wrong (driver kvm, start_instance) [invalid-parameters]",
        "  - p: m (h) [a]",
        "  - n [b]",
        "  hint: read the manual",
    ]


def test_an_unknown_outcome_is_told_as_such() -> None:
    """Nobody is to repeat what may have happened."""
    assert any("may have happened" in line for line in error_lines(errors.OutcomeUnknown("no answer")))


def test_control_characters_do_not_reach_the_terminal() -> None:
    """What others said cannot drive the terminal, and stays readable."""
    assert printable("a\x1b[2Jb\tä\n") == "a\\x1b[2Jb\tä\n"


def test_durations_have_units() -> None:
    """A duration is a number with a unit; anything else is a usage error."""
    context, option = click.Context(click.Command("x")), click.Option(["--timeout"])
    assert read_duration(context, option, "1.5min") == 90
    with pytest.raises(click.BadParameter, match="not a duration"):
        read_duration(context, option, "30")


@pytest.mark.parametrize(
    ("content", "where", "words"),
    [
        (b'name = "a"\nmemory = 12 MiB\n', ":2:13", "Expected newline"),
        (b'name = "a', ":1:10", "at end of document"),
        (b'name = "a"\nx = "\xff"\n', ":2", "UTF-8"),
    ],
)
def test_a_broken_file_is_a_finding_with_its_place(tmp_path: Path, content: bytes, where: str, words: str) -> None:
    """A file that is no TOML is reported with line and column."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(errors.InvalidParameters) as caught:
        read_instance_file(str(path))
    (finding,) = caught.value.findings
    assert finding.path == f"{path}{where}"
    assert words in finding.message
    assert finding.code == "invalid-toml"


def test_a_missing_or_endless_file_is_a_finding(tmp_path: Path) -> None:
    """A file that cannot be read is invalid input, not a bug."""
    for path in (str(tmp_path / "none.toml"), str(tmp_path), "/dev/zero"):
        with pytest.raises(errors.InvalidParameters) as caught:
            read_instance_file(path)
        assert caught.value.findings.codes == ("unreadable-file",)


def test_a_name_is_a_name_or_that_in_a_file(tmp_path: Path) -> None:
    """Where a name is asked for, the instance's file will do."""
    path = tmp_path / "a.toml"
    path.write_text('name = "web1"\n', encoding="utf-8")
    assert instance_name("web2") == "web2"
    assert instance_name(str(path)) == "web1"
    path.write_text("name = 1\n", encoding="utf-8")
    with pytest.raises(errors.InvalidParameters) as caught:
        instance_name(str(path))
    assert caught.value.findings.codes == ("missing-name",)


def test_a_definition_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """What the file says and an `Instance` cannot hold is not lost on the way."""

    class Checker:
        def check_parameter_syntax(self, values: object) -> FindingSet:
            return FindingSet([Finding(code="unknown-parameter", path="memroy", message="is unknown")])

    path = tmp_path / "a.toml"
    path.write_text('name = "web1"\nmemroy = 1\n', encoding="utf-8")
    with pytest.raises(errors.InvalidParameters, match="memroy"):
        checked_instance(Checker(), str(path))  # type: ignore[arg-type]


def test_how_far_it_is() -> None:
    """Done, total where there is one, and rate; what a driver calls a phase cannot drive the terminal."""
    half = Progress(phase="saving", done=3 << 20, total=6 << 20)
    assert ProgressLine.text(half, 2.0) == "saving: 3.0MiB of 6.0MiB, 1.5MiB/s"
    assert ProgressLine.text(Progress(phase="\x1b[2J", done=0, total=0), 0.0) == "\\x1b[2J: 0B"


def test_a_device_that_is_a_parameter() -> None:
    """Words become values or entries of lists; words that are not used are named, and which one goes has to be said."""
    rng = peripheral("rng", ("source=urandom", "rate=5"), goes=False)
    assert rng.values == {"rng": None, "rng_source": "urandom", "rng_rate": 5}
    assert peripheral("rng", (), goes=True).values == {"rng": False, "rng_source": None, "rng_rate": None}
    port = ("name=org.example.0", "console=true")
    assert peripheral("port", port, goes=False).add == {"virtio_ports": [{"name": "org.example.0", "console": True}]}
    assert peripheral("usb", ("type=tablet",), goes=True).remove == {"usb": [{"type": "tablet"}]}
    for kind, words, path in (("rng", ("x=1",), "rng.x"), ("port", (), "port"), ("usb", ("tablet",), "usb")):
        with pytest.raises(InvalidParameters) as caught:
            peripheral(kind, words, goes=kind != "rng")
        assert [finding.path for finding in caught.value.findings] == [path]
