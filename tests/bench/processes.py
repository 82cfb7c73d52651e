"""What a process pays for hvcore before it does anything: importing it, and ``hv list`` as a whole."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from tests.bench.rows import Row, side_by_side


def measure(*, quick: bool) -> Iterator[Row]:
    """Rows of importing and of ``hv list``."""
    count = 3 if quick else 15
    python = [sys.executable, "-I"]
    bare = _process([*python, "-c", "pass"])
    (importing,) = side_by_side(_process([*python, "-c", "import hvcore"]), bare, count)
    yield Row(
        name="import hvcore, over bare Python",
        unit="ms",
        **importing.excess(1e3),
        samples=count,
        budget="40 ms",
    )
    (loading,) = side_by_side(_process([*python, "-c", "import hvcore; hvcore.load_driver"]), bare, count)
    yield Row(
        name="import what loads a driver, over bare Python",
        unit="ms",
        **loading.excess(1e3),
        samples=count,
    )
    with tempfile.TemporaryDirectory() as directory:
        where = [word for kind in ("state", "data", "cache") for word in (f"--{kind}-directory", f"{directory}/{kind}")]
        hv = [*python, "-c", "from hvcore.cli import main; main()", *where, "list"]
        (whole,) = side_by_side(_process(hv), bare, count)
    yield Row(
        name="hv list, whole process",
        unit="ms",
        **whole.scaled(1e3),
        against="bare Python",
        samples=count,
        budget="80 ms",
    )


def _process(command: Sequence[str]) -> Callable[[], tuple[float]]:
    def run() -> tuple[float]:
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - begun,)

    return run
