"""CPU masks: what they mean, what is refused, and which threads they reach."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import hvcore
from hvcore_kvm import affinity
from hvcore_kvm.affinity import format_cpus, parse_mask, pin, pin_instance, threads_of, usable_cpus


@pytest.mark.parametrize(
    ("mask", "elements"),
    [
        ("0", ((0,),)),
        ("7-7", ((7,),)),
        ("4-6,1", ((1, 4, 5, 6),)),
        ("3,1,2,2", ((1, 2, 3),)),
        ("all", (None,)),
        ("1:3", ((1,), (3,))),
        ("0-1,4:all:2", ((0, 1, 4), None, (2,))),
        ("8191", ((8191,),)),
        ("007", ((7,),)),
    ],
)
def test_masks(mask: str, elements: Any) -> None:
    """Elements by colons; in each, numbers and ranges by commas, or all of them; what is named twice counts once."""
    assert parse_mask(mask) == elements


@pytest.mark.parametrize(
    "mask",
    [
        *("", "-", ",", ":", "1,", ",1", "1,,2", "1:", ":1", "all:", "1-", "-1", "1--2", "1-2-3", "3-1"),
        *("1 - 2", " 1", "1\n", "+1", "0x1", "1e1", "\u0661", "*", "All", "all-1", "all,1", "1,all", "8192", "0-8192"),
        *("99999999999999999999", "1_0", "!1", "^1", "1;2", "\0"),
    ],
)
def test_what_is_no_mask(mask: str) -> None:
    """Everything else is refused in words, never with a traceback of another kind."""
    with pytest.raises(ValueError, match=r"element|CPU number|counts down"):
        parse_mask(mask)


def test_a_mask_has_a_limit() -> None:
    """A mask of endless length is not even read; one that is long and right is quick."""
    with pytest.raises(ValueError, match="characters"):
        parse_mask("1," * 40000 + "1")
    assert len(parse_mask(":".join(["0-8191"] * 64))) == 64


@pytest.mark.parametrize(
    ("cpus", "words"),
    [((0,), "0"), ((0, 1, 2), "0-2"), ((0, 2, 3, 9), "0,2-3,9"), (None, "all"), ((5, 6), "5-6")],
)
def test_cpus_in_words(cpus: Any, words: str) -> None:
    """What is written is what is read."""
    assert format_cpus(cpus) == words
    assert parse_mask(words) == (cpus,)


_FIRST, _LAST = min(usable_cpus()), max(usable_cpus())
_two_cpus = pytest.mark.skipif(_FIRST == _LAST, reason="the host has one CPU")


@pytest.fixture
def threads() -> Iterator[tuple[int, ...]]:
    """Threads of this process that wait until the end of the test, allowed on all CPUs."""
    done, ready = threading.Event(), threading.Barrier(5)

    def wait() -> None:
        ready.wait()
        done.wait()

    running = [threading.Thread(target=wait) for _ in range(4)]
    for thread in running:
        thread.start()
    ready.wait()
    yield tuple(thread.native_id or 0 for thread in running)
    done.set()
    for thread in running:
        thread.join()


@_two_cpus
def test_pinning_reaches_the_named_threads(threads: tuple[int, ...]) -> None:
    """Only they are pinned, and all lets them run everywhere again."""
    pin(threads[:2], (_LAST,))
    assert [os.sched_getaffinity(thread) for thread in threads] == [{_LAST}] * 2 + [usable_cpus()] * 2
    pin(threads[:1], None)
    assert os.sched_getaffinity(threads[0]) == usable_cpus()


def test_a_thread_that_has_ended_is_no_error() -> None:
    """Between listing and pinning, a thread may end."""
    thread = threading.Thread(target=lambda: None)
    thread.start()
    ident = thread.native_id or 0
    thread.join()
    pin([ident], (_FIRST,))
    assert threads_of(2**22 + 1) == ()


def test_a_cpu_that_is_not_there_is_refused(threads: tuple[int, ...]) -> None:
    """The kernel's refusal comes in words, with what to do."""
    with pytest.raises(hvcore.HostError, match="cannot pin thread") as caught:
        pin(threads[:1], (8191,))
    assert caught.value.code == "pinning-refused"
    assert caught.value.hint is not None


def test_online_cpus_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not say which are online, those this process may use are taken."""
    assert usable_cpus() >= os.sched_getaffinity(0)
    monkeypatch.setattr(affinity, "parse_mask", lambda mask: (None,))
    assert usable_cpus() == os.sched_getaffinity(0)


class _Kernel:
    """Records who is pinned where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, everyone: tuple[int, ...]) -> None:
        self.calls: dict[int, Any] = {}
        monkeypatch.setattr(affinity, "threads_of", lambda pid: everyone)
        monkeypatch.setattr(affinity, "pin", lambda threads, cpus: self.calls.update(dict.fromkeys(threads, cpus)))


@pytest.mark.parametrize(
    ("masks", "pinned"),
    [
        ({}, {}),
        ({"cpu": "2"}, dict.fromkeys((500, 501, 502, 503, 504), (2,))),
        ({"cpu": "all"}, dict.fromkeys((500, 501, 502, 503, 504), None)),
        ({"cpu": "1-2:all"}, {501: (1, 2), 502: None}),
        ({"emulator": "0"}, {500: (0,), 504: (0,)}),
        ({"iothread": "3"}, {503: (3,)}),
        ({"cpu": "1:2", "emulator": "0", "iothread": "3"}, {500: (0,), 501: (1,), 502: (2,), 503: (3,), 504: (0,)}),
        ({"cpu": "1", "iothread": "3"}, {500: (1,), 501: (1,), 502: (1,), 503: (3,), 504: (1,)}),
        ({"cpu": "1", "emulator": "2"}, {500: (2,), 501: (1,), 502: (1,), 503: (1,), 504: (2,)}),
    ],
)
def test_who_is_pinned(monkeypatch: pytest.MonkeyPatch, masks: dict[str, str], pinned: dict[int, Any]) -> None:
    """One element is for the whole process, several for its virtual CPUs; the narrower mask has the last word."""
    kernel = _Kernel(monkeypatch, (500, 501, 502, 503, 504))
    given = {"cpu": None, "emulator": None, "iothread": None, **masks}
    pin_instance(500, {0: 501, 1: 502}, {0: 503}, **given)
    assert kernel.calls == pinned


def test_virtual_cpus_without_an_element_run_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual CPU that came later than the mask is not pinned to somebody else's CPUs."""
    kernel = _Kernel(monkeypatch, (500, 501, 502, 503))
    pin_instance(500, {0: 501, 1: 502, 2: 503}, {}, cpu="1:2", emulator=None, iothread=None)
    assert kernel.calls == {501: (1,), 502: (2,), 503: None}


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("params", "vcpus", "finding"),
    [
        ({"cpu_pin": "0:0"}, 1, ("contradiction", "params.cpu_pin")),
        ({"cpu_pin": "0:0", "vcpus_max": 3}, 2, ("contradiction", "params.cpu_pin")),
        ({"cpu_pin": "8000"}, 1, ("no-such-cpu", "params.cpu_pin")),
        ({"emulator_pin": "0:0"}, 1, ("invalid-value", "params.emulator_pin")),
        ({"iothread_pin": "0"}, 1, ("contradiction", "params.iothread_pin")),
        ({"iothread_pin": "0:0:0", "iothreads": 2}, 1, ("contradiction", "params.iothread_pin")),
        ({"cpu_pin": "1-"}, 1, ("invalid-value", "params.cpu_pin")),
    ],
)
def test_what_does_not_fit_is_found_before_the_start(
    host: Any, params: dict[str, Any], vcpus: int, finding: tuple[str, str]
) -> None:
    """The number of elements, and CPUs the host does not have."""
    findings = host.driver.validate_parameters(host.instance(vcpus=vcpus, params=params))
    assert [(found.code, found.path) for found in findings] == [finding]


@pytest.mark.qemu
@_two_cpus
def test_a_running_instance_is_pinned(host: Any) -> None:
    """The kernel says of every thread of QEMU what the masks say."""
    host.driver.start_instance(
        host.instance(vcpus=2, params={"cpu_pin": f"{_FIRST}:{_LAST}", "emulator_pin": str(_LAST)})
    )
    names = {}
    for thread in threads_of(host.pid()):
        # QEMU's workers come and go.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{thread}/comm", encoding="ascii") as file,
        ):
            names[thread] = file.read().strip()
    # QEMU names its threads after the virtual CPUs they run: "CPU 0/TCG".
    where = {name: os.sched_getaffinity(thread) for thread, name in names.items() if name.startswith("CPU ")}
    assert {name[:5]: cpus for name, cpus in where.items()} == {"CPU 0": {_FIRST}, "CPU 1": {_LAST}}
    assert os.sched_getaffinity(host.pid()) == {_LAST}
