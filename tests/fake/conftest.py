"""Loading fake drivers whose directories are all below the test's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore_fake import World

sys.path.insert(0, str(Path(__file__).parent))

Load = Callable[..., hvcore.Driver]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a fake driver; every call loads another on the same directories."""
    loaded = []

    def make(*, extensions: tuple[object, ...] = (), **settings: Any) -> hvcore.Driver:
        directories = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
        loaded.append(hvcore.load_driver("fake", {**directories, **settings}, extensions=extensions))
        return loaded[-1]

    yield make
    for driver in loaded:
        driver.close()


@pytest.fixture
def driver(load: Load) -> hvcore.Driver:
    """One fake driver without faults."""
    return load()


@pytest.fixture
def world(driver: hvcore.Driver) -> World:
    """The world of that driver."""
    return World.of(driver)


@pytest.fixture
def raw_disk(tmp_path: Path) -> hvcore.Disk:
    """A raw disk that is there."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return hvcore.Disk(path=str(path), format="raw")


@pytest.fixture
def files(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Says what all files about instances hold: those of a world in which nothing is kept are none."""

    def read() -> dict[str, bytes]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else b""
            for root in ("state/fake/instances", "state/fake/processes", "state/fake/journals", "data/fake/instances")
            for path in sorted((tmp_path / root).rglob("*"))
        }

    return read
