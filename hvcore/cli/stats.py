"""``hv stats``: counters of an instance, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import click

from hvcore.cli.duration import read_duration
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.output import Output
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.model.state import BlockStats, GuestMemory, InstanceStats, NicStats
from hvcore.model.units import format_seconds

Row = tuple[str, str, str, str]
HEADERS: Row = ("what", "counter", "total", "a second")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@click.command(cls=HvCommand)
@name_argument
@click.option(
    "--watch",
    metavar="[DURATION]",
    is_flag=False,
    flag_value="2s",
    callback=read_duration,
    help="Look again and again, every 2s when not given, and show what changes in a second. Ctrl-C ends it.",
)
@click.pass_obj
def stats_command(session: Session, name: str, watch: float | None) -> None:
    """Show counters of a running instance: CPU time, memory, disks and NICs.

    NICs are seen from the guest, and only those with an interface on the host are counted.
    """
    output = session.output()
    if watch is not None and output.as_json:
        raise click.UsageError("--json prints one document, and --watch does not end")
    if watch is not None and watch < 0.1:
        raise click.UsageError("--watch cannot look more often than every 100ms")
    instance = instance_name(name)
    with session.driver() as driver:
        if watch is None:
            found = driver.get_instance_stats(instance)
            if output.as_json:
                output.document(found)
            else:
                output.table(HEADERS[:3], [row[:3] for row in rows(found)])
                _say_incomplete(output, found)
        else:
            _watch(output, looks(lambda: driver.get_instance_stats(instance), watch))


def looks(look: Callable[[], InstanceStats], every: float) -> Iterator[list[Row]]:
    """Look again and again: the rows of each look, with what has changed a second since the one before."""
    before: InstanceStats | None = None
    then = 0.0
    while True:
        now, found = time.monotonic(), look()
        yield rows(found, before, now - then)
        before, then = found, now
        time.sleep(max(0.0, every - (time.monotonic() - now)))


def _watch(output: Output, tables: Iterator[list[Row]]) -> None:
    if not output.rich:
        for table in tables:
            output.table(HEADERS, table)
            output.say("")
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        for table in tables:
            live.update(output.rich_table(HEADERS, table), refresh=True)


def _say_incomplete(output: Output, found: InstanceStats) -> None:
    if found.incomplete:
        output.say(f"incomplete: {found.incomplete}")


def rows(now: InstanceStats, before: InstanceStats | None = None, seconds: float = 0.0) -> list[Row]:
    """The counters for people.

    Args:
        now: what they are.
        before: what they were at the look before; rates are left out without.
        seconds: how long ago that was.
    """
    counted = [*_counters(now)]
    known = {row[:2]: row[2] for row in _counters(before)} if before is not None else {}

    def rate(key: tuple[str, str], value: float, show: Callable[[float], str]) -> str:
        old = known.get(key)
        # A counter that went back belongs to another process.
        if old is None or seconds <= 0 or value < old:
            return "-"
        return show((value - old) / seconds)

    shown = [
        (what, counter, show(value), rate((what, counter), value, by)) for what, counter, value, show, by in counted
    ]
    return [*shown, *((what, counter, amount(value), "") for what, counter, value in _levels(now))]


_Counter = tuple[str, str, float, Callable[[float], str], Callable[[float], str]]


def _counters(stats: InstanceStats) -> Iterator[_Counter]:
    if stats.cpu_time is not None:
        yield "process", "CPU", stats.cpu_time, format_seconds, _percent
    for number, used in enumerate(stats.vcpu_times):
        yield f"vcpu {number}", "CPU", used, format_seconds, _percent
    for disk in stats.disks:
        yield from _of_disk(disk)
    for nic in stats.nics:
        yield from _of_nic(nic)


def _of_disk(disk: BlockStats) -> Iterator[_Counter]:
    what = f"disk {disk.device}"
    yield what, "read", disk.read_bytes, amount, amount
    yield what, "written", disk.written_bytes, amount, amount
    for counter, number in (("reads", disk.reads), ("writes", disk.writes), ("flushes", disk.flushes)):
        yield what, counter, number, _count, _per_second
    for counter, taken in (("read time", disk.read_time), ("write time", disk.write_time)):
        yield what, counter, taken, format_seconds, _percent
    yield what, "errors", disk.errors, _count, _per_second


def _of_nic(nic: NicStats) -> Iterator[_Counter]:
    what = f"nic {nic.device}"
    yield what, "received", nic.received_bytes, amount, amount
    yield what, "sent", nic.sent_bytes, amount, amount
    yield what, "packets received", nic.received_packets, _count, _per_second
    yield what, "packets sent", nic.sent_packets, _count, _per_second
    yield what, "drops", nic.received_drops + nic.sent_drops, _count, _per_second


def _levels(stats: InstanceStats) -> Iterator[tuple[str, str, int]]:
    """What is no counter, but as much as there is now."""
    yield "memory", "guest has", stats.memory_balloon
    yield "memory", "host holds", stats.memory_resident
    told = stats.guest_memory or GuestMemory(updated=0.0)
    for counter, value in (("free", told.free), ("available", told.available), ("caches", told.caches)):
        if value is not None:
            yield "memory", f"guest says {counter}", value


def amount(value: float) -> str:
    """Bytes for people, rounded: ``12.3MiB``."""
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _per_second(value: float) -> str:
    return f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"
