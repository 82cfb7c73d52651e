"""State files: replaced as a whole, upgraded when old, refused when damaged or newer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import Disk, Instance, Nic, RecordError, read_record, write_record


@attrs.frozen(kw_only=True)
class Sample:
    instance: Instance
    numbers: Mapping[str, int] = attrs.field(factory=dict)
    added: str = ""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


SAMPLE = Sample(
    instance=Instance(
        name="web1",
        memory="512MiB",
        params={"nested": {"list": [1, "two", None, True]}},
        disks=[Disk(path="/a,b", format="raw", params={"x": 1})],
        nics=[Nic(mac="52:54:00:00:00:01")],
    ),
    numbers={"a": 1},
)


def test_a_record_reads_back_as_it_was(directory: int, tmp_path: Path) -> None:
    """Definitions with nested parameters survive the way to disk and back; only their owner may read them."""
    write_record(directory, "r.json", SAMPLE, schema=1, durable=True)
    assert read_record(directory, "r.json", Sample, schema=1) == SAMPLE
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["r.json"]


def test_a_missing_record_is_none(directory: int) -> None:
    """No file is no error."""
    assert read_record(directory, "r.json", Sample, schema=1) is None


def test_old_records_are_upgraded_step_by_step(directory: int, tmp_path: Path) -> None:
    """A record of version 1 passes through every upgrade to the present one."""
    write_record(directory, "r.json", SAMPLE, schema=1)

    def one_to_two(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "added": "two"}

    def two_to_three(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "added": values["added"] + " three"}

    upgrades = (one_to_two, two_to_three)
    found = read_record(directory, "r.json", Sample, schema=3, upgrades=upgrades)
    assert found == attrs.evolve(SAMPLE, added="two three")
    write_record(directory, "r.json", SAMPLE, schema=2)
    found = read_record(directory, "r.json", Sample, schema=3, upgrades=(one_to_two, two_to_three))
    assert found == attrs.evolve(SAMPLE, added=" three")


def test_a_newer_record_is_refused(directory: int) -> None:
    """What a newer version wrote is not guessed at."""
    write_record(directory, "r.json", SAMPLE, schema=4)
    with pytest.raises(RecordError) as caught:
        read_record(directory, "r.json", Sample, schema=3, upgrades=())
    assert caught.value.code == "record-schema"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "{}", '{"schema": true}', '{"schema": 1}', '{"schema": "1"}']
)
def test_a_damaged_record_is_told(directory: int, tmp_path: Path, text: str) -> None:
    """What cannot be understood is a typed error that names the record."""
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RecordError, match=r"r\.json"):
        read_record(directory, "r.json", Sample, schema=1)


def test_a_link_is_not_followed(directory: int, tmp_path: Path) -> None:
    """A record that is a symbolic link is somebody's trick."""
    write_record(directory, "target", SAMPLE, schema=1)
    (tmp_path / "r.json").symlink_to("target")
    with pytest.raises(RecordError):
        read_record(directory, "r.json", Sample, schema=1)


def test_a_failed_write_leaves_the_old_record(directory: int, tmp_path: Path, mocker: Any) -> None:
    """A full file system keeps what was there, and no temporary file."""
    write_record(directory, "r.json", SAMPLE, schema=1)
    mocker.patch("hvcore.records.os.write", side_effect=OSError(28, "No space left on device"))
    with pytest.raises(RecordError, match="No space left"):
        write_record(directory, "r.json", attrs.evolve(SAMPLE, added="new"), schema=1)
    mocker.stopall()
    assert read_record(directory, "r.json", Sample, schema=1) == SAMPLE
    assert os.listdir(tmp_path) == ["r.json"]
