"""Files held to a size: what is kept, what goes, and that nobody who appends or reads is disturbed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore_kvm.events import LIMIT, last_of_each, parse_events
from hvcore_kvm.ring_log import PAGE, SLACK, data_segments, hold_to_size, read_newest

_SIZE = 2**16


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _numbered(count: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(count))


def _read(path: Path, limit: int = 2**40) -> bytes:
    with path.open("rb") as file:
        return read_newest(file.fileno(), limit)


def test_the_newest_bytes_stay_where_they_are(tmp_path: Path, folder: int) -> None:
    """What is old goes, the size stays what was ever written, the blocks are given back."""
    path = tmp_path / "log"
    text = _numbered(100_000)
    path.write_bytes(text)
    hold_to_size(folder, "log", _SIZE)
    assert path.stat().st_size == len(text)
    assert path.stat().st_blocks * 512 <= _SIZE + 2 * PAGE
    assert path.read_bytes()[-_SIZE:] == text[-_SIZE:]
    kept = _read(path)
    assert kept == text[-len(kept) :]
    assert _SIZE <= len(kept) < _SIZE + PAGE
    assert _read(path, 100) == text[-100:]
    hold_to_size(folder, "log", _SIZE)
    assert _read(path) == kept, "a second look changes nothing"


def test_a_file_that_is_little_too_large_is_left_alone(tmp_path: Path, folder: int) -> None:
    """Holes are made when they are worth it."""
    path = tmp_path / "log"
    path.write_bytes(bytes(_SIZE + SLACK))
    hold_to_size(folder, "log", _SIZE)
    assert len(_read(path)) == _SIZE + SLACK
    with path.open("ab") as file:
        file.write(bytes(PAGE))
    hold_to_size(folder, "log", _SIZE)
    assert len(_read(path)) == _SIZE


def test_nothing_is_lost_to_one_who_appends_meanwhile(tmp_path: Path, folder: int) -> None:
    """One writes without a pause, two hold the file to its size: then the newest bytes are all there."""
    path = tmp_path / "log"
    written = threading.Event()
    lines = 60_000

    def append() -> None:
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            for number in range(lines):
                file.write(b"%07d\n" % number)
        written.set()

    def hold() -> None:
        while not written.is_set():
            hold_to_size(folder, "log", _SIZE)

    threads = [threading.Thread(target=work) for work in (append, hold, hold)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = _read(path)
    assert len(kept) < 8 * lines
    assert kept == _numbered(lines)[-len(kept) :]
    hold_to_size(folder, "log", _SIZE)
    kept = _read(path)
    assert kept == _numbered(lines)[-len(kept) :]
    assert _SIZE <= len(kept) <= _SIZE + SLACK + PAGE


def test_what_is_no_file_is_not_touched(tmp_path: Path, folder: int) -> None:
    """A symbolic link is not followed, a pipe does not block, what is missing is no error."""
    target = tmp_path / "elsewhere"
    target.write_bytes(_numbered(100_000))
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing"):
        hold_to_size(folder, name, PAGE)
    assert len(list(_segments(target))) == 1


def _segments(path: Path) -> Iterator[tuple[int, int]]:
    with path.open("rb") as file:
        yield from data_segments(file.fileno())


def _event(name: str, time: int, **data: object) -> bytes:
    values = {"timestamp": {"seconds": time, "microseconds": 0}, "event": name, "data": data}
    return json.dumps(values).encode() + b"\r\n"


def test_the_last_telling_events_stay_however_old(tmp_path: Path, folder: int) -> None:
    """A flood between them takes only what says nothing any more."""
    path = tmp_path / "events"
    flood = _event("RTC_CHANGE", 1, offset=0)
    path.write_bytes(_event("RESUME", 10) + flood * 6000 + _event("STOP", 11) + flood * 6000)
    hold_to_size(folder, "events", LIMIT, last_of_each)
    with path.open("ab") as file:
        file.write(flood * 6000 + _event("RESUME", 12) + flood * 9000 + _event("GUEST_PANICKED", 13, action="pause"))
        file.write(flood * 20000)
    for _ in range(3):
        hold_to_size(folder, "events", LIMIT, last_of_each)
    told = [(event.name, event.time) for event in parse_events(_read(path).decode()) if event.name != "RTC_CHANGE"]
    assert told == [("STOP", 11), ("RESUME", 12), ("GUEST_PANICKED", 13)]
    assert path.stat().st_blocks * 512 < LIMIT + SLACK


def test_an_event_across_the_edge_of_a_piece_stays_whole(tmp_path: Path, folder: int) -> None:
    """Wherever it lies between pages and chunks, its line can be read."""
    flood = b"x" * 99 + b"\n"
    for before in (2**20 - 20, 2**20 - 70, PAGE - 10, 3 * PAGE - 40):
        path = tmp_path / "events"
        filling = (flood * (before // 100 + 1))[-before + 1 :] + b"\n"
        path.write_bytes(filling + _event("WATCHDOG", 5, action="none") + flood * 10000)
        hold_to_size(folder, "events", PAGE, last_of_each)
        assert [event.name for event in parse_events(_read(path).decode())] == ["WATCHDOG"], before
        assert path.stat().st_blocks * 512 <= 5 * PAGE
