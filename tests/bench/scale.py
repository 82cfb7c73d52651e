"""Listing and describing many instances, beside a bare query-status over the same sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.bench.bare_qemu import Monitor
from tests.bench.host import Host, accelerators
from tests.bench.rows import Row, side_by_side


def measure(host: Host, *, quick: bool) -> Iterator[Row]:
    """Rows of listing and information, for each accelerator."""
    number, count = (5, 3) if quick else (50, 15)
    for accel in accelerators():
        names = [f"bench{index}" for index in range(number)]
        for name in names:
            host.driver.start_instance(host.instance(name, accel))
        try:
            yield from _rows(host, accel, names, count)
        finally:
            for name in names:
                host.driver.stop_instance(name, force=True)


def _rows(host: Host, accel: str, names: list[str], count: int) -> Iterator[Row]:
    paths = [f"{host.driver.directories.state}/instances/{name}/query" for name in names]

    def ask_in_turn() -> None:
        for path in paths:
            with Monitor(path) as monitor:
                monitor.send("qmp_capabilities", "query-status")
                monitor.answers(2)

    def ask_together() -> None:
        monitors = [Monitor(path) for path in paths]
        for monitor in monitors:
            monitor.send("qmp_capabilities", "query-status")
        for monitor in monitors:
            monitor.answers(2)
            monitor.close()

    def inform() -> None:
        infos = host.driver.get_all_instances_info().instances
        assert len(infos) == len(names)
        assert not any(info.incomplete for info in infos)

    (listing,) = side_by_side(_timed(host.driver.list_instances), _timed(ask_together), count)
    yield Row(
        name=f"list of {len(names)}, {accel}",
        unit="ms/instance",
        value=listing.ours * 1e3 / len(names),
        lowest=listing.lowest_ours * 1e3 / len(names),
        samples=count,
        budget="0.01 ms",
    )
    for against, ask in (("query-status, in turn", ask_in_turn), ("query-status, all at once", ask_together)):
        (info,) = side_by_side(_timed(inform), _timed(ask), count)
        yield Row(
            name=f"full info of {len(names)}, {accel}",
            unit="ms/instance",
            **info.scaled(1e3 / len(names)),
            against=against,
            samples=count,
        )


def _timed(work: Callable[[], object]) -> Callable[[], tuple[float]]:
    def timed() -> tuple[float]:
        begun = time.perf_counter()
        work()
        return (time.perf_counter() - begun,)

    return timed
