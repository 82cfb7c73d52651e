"""Steps with an undo, in a journal that survives its writer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hvcore import HostError, Journal, OperationFailed, Step, unfinished


def _step(log: list[str], name: str, *, fails: bool = False, sticks: bool = False) -> Step:
    def do() -> str:
        log.append(f"do {name}")
        if fails:
            raise HostError(f"{name} failed")
        return name

    def undo() -> None:
        log.append(f"undo {name}")
        if sticks:
            raise HostError(f"{name} sticks")

    return Step(name=name, do=do, undo=undo, details={"name": name})


def test_a_success_leaves_no_journal(tmp_path: Path) -> None:
    """When everything is done the file is gone, and each step has returned its result."""
    log: list[str] = []
    path = tmp_path / "journal"
    with Journal(str(path), "start") as journal:
        assert journal.run(_step(log, "a")) == "a"
        assert path.exists()
    assert log == ["do a"]
    assert not path.exists()


def test_a_failure_undoes_in_reverse(tmp_path: Path) -> None:
    """The failed step, which may have happened half, and all before it are undone, the last first."""
    log: list[str] = []
    with pytest.raises(HostError, match="b failed"), Journal(str(tmp_path / "journal"), "start") as journal:
        journal.run(_step(log, "a"))
        journal.run(_step(log, "b", fails=True))
    assert log == ["do a", "do b", "undo b", "undo a"]
    assert not (tmp_path / "journal").exists()


def test_a_failing_undo_is_reported_beside_the_failure(tmp_path: Path) -> None:
    """What could not be undone is noted on the error, the rest is undone, and the journal stays for recovery."""
    log: list[str] = []
    with pytest.raises(HostError, match="c failed") as caught, Journal(str(tmp_path / "journal"), "start") as journal:
        journal.run(_step(log, "a"))
        journal.run(_step(log, "b", sticks=True))
        journal.run(_step(log, "c", fails=True))
    assert log[-3:] == ["undo c", "undo b", "undo a"]
    assert caught.value.__notes__ == ["undoing b: b sticks"]
    assert unfinished(str(tmp_path / "journal"))[-1] == {"undo": "start"}


def test_a_foreign_exception_and_a_failing_undo(tmp_path: Path) -> None:
    """Also when what failed is no error of ours, both are told."""
    with (
        pytest.raises(OperationFailed, match="a sticks") as caught,
        Journal(str(tmp_path / "journal"), "start") as journal,
    ):
        journal.run(_step([], "a", sticks=True))
        raise ZeroDivisionError
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_killed_writer_leaves_how_far_it_got(tmp_path: Path) -> None:
    """The journal has an intent before each step and a mark after it, with what recovery needs."""
    path = tmp_path / "journal"
    journal = Journal(str(path), "start", {"extra": 1})
    journal.__enter__()
    journal.run(_step([], "a"))

    def killed() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.run(Step(name="b", do=killed))
    entries = unfinished(str(path))
    assert entries[0]["begin"] == "start"
    assert entries[0]["extra"] == 1
    assert entries[1:] == [{"step": "a", "name": "a"}, {"done": "a"}, {"step": "b"}]
    path.write_text(path.read_text() + '{"cut')
    assert unfinished(str(path)) == entries
    journal.undo()


def test_no_file_no_journal(tmp_path: Path) -> None:
    """Without a path only the undo remains; what is not there is not unfinished."""
    log: list[str] = []
    with pytest.raises(HostError), Journal(None, "start") as journal:
        journal.run(_step(log, "a", fails=True))
    assert log == ["do a", "undo a"]
    assert unfinished(str(tmp_path / "nothing")) == []


def _fill(journal: Journal) -> None:
    """From now on there is no room for what it writes."""
    assert journal._fd is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._fd)
    os.close(full)


def test_what_cannot_be_written_is_undone_all_the_same(tmp_path: Path) -> None:
    """A step for which there is no room is not done, and those before it are taken back."""
    log: list[str] = []
    path = tmp_path / "journal"
    with pytest.raises(HostError, match="No space left") as refused, Journal(str(path), "start") as journal:
        journal.run(_step(log, "a"))
        _fill(journal)
        journal.run(_step(log, "b"))
    assert log == ["do a", "undo a"]
    assert refused.value.hint is not None
    assert not path.exists()


def test_one_that_cannot_be_begun_leaves_no_descriptor() -> None:
    """Where there is no room for its first line."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostError, match="No space left"), Journal("/dev/full", "start"):
        pass
    assert os.listdir("/proc/self/fd") == before
