"""Parameters of the processors take effect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from kvm_effect import Effect, Probe, of, proves, rows, type_of

from hvcore import SpawnFailed
from hvcore_kvm.affinity import format_cpus, usable_cpus

pytestmark = pytest.mark.qemu

_CPU = "/machine/unattached/device[0]"


def _most(name: str) -> Callable[[Probe], int]:
    """How many of a part of the topology there are in the next greater one."""
    return lambda probe: 1 + max(row["props"][name] for row in probe.qmp("query-hotpluggable-cpus"))


def _most_now(name: str) -> Callable[[Probe], int]:
    return lambda probe: 1 + max(row["props"][name] for row in probe.qmp("query-cpus-fast"))


EFFECTS = [
    Effect(
        given={"params": {"cpu_model": "Westmere", "cpu_features": {"x2apic": False}}},
        shows={
            "params.cpu_model": (type_of(_CPU), "Westmere-x86_64-cpu"),
            "params.cpu_enforce": (of(_CPU, "enforce"), True),
        },
    ),
    Effect(
        # A level of the psABI is the plainest model with what the level adds.
        given={"params": {"cpu_model": "x86-64-v2"}},
        base={"params": {"cpu_model": "qemu64"}},
        shows={
            "params.cpu_model": (lambda probe: [probe.get(_CPU, name) for name in ("sse4.2", "popcnt")], [True] * 2)
        },
    ),
    Effect(
        given={"params": {"cpu_features": {"aes": False, "sse4.1": False}}},
        shows={
            "params.cpu_features": (lambda probe: [probe.get(_CPU, name) for name in ("aes", "sse4.1")], [False] * 2)
        },
    ),
    Effect(
        given={"params": {"cpu_model": "EPYC", "cpu_enforce": False}},
        base={"params": {"cpu_model": "qemu64"}},
        shows={"params.cpu_enforce": (of(_CPU, "enforce"), False)},
    ),
    Effect(given={"params": {"nested": False}}, shows={"params.nested": (of(_CPU, "svm"), False)}),
    Effect(
        given={"params": {"cpu_model": "Nehalem", "nested": True}},
        base={"params": {"cpu_model": "Nehalem"}},
        shows={"params.nested": (of(_CPU, "svm"), True)},
    ),
    Effect(
        # The one enlightenment that every KVM can have: it is only a bit in a CPUID leaf.
        given={"params": {"accel": "kvm", "hyperv": ["relaxed"], "cpu_features": {"arch-capabilities": False}}},
        base={"params": {"accel": "kvm", "cpu_features": {"arch-capabilities": False}}},
        shows={"params.hyperv": (of(_CPU, "hv-relaxed"), True)},
        needs=("kvm",),
    ),
    Effect(
        given={"params": {"vcpus_max": 6}},
        shows={"params.vcpus_max": (lambda probe: len(probe.qmp("query-hotpluggable-cpus")), 6)},
    ),
    Effect(
        given={
            "vcpus": 2,
            "params": {"vcpus_max": 36, "topology": {"sockets": 2, "dies": 3, "cores": 3, "threads": 2}},
        },
        base={"vcpus": 2, "params": {"vcpus_max": 36}},
        shows={
            "params.topology": (lambda probe: "die-id" in probe.qmp("query-hotpluggable-cpus")[0]["props"], True),
            "params.topology.sockets": (_most("socket-id"), 2),
            "params.topology.dies": (_most("die-id"), 3),
            "params.topology.cores": (_most("core-id"), 3),
            "params.topology.threads": (_most("thread-id"), 2),
        },
    ),
    Effect(
        given={
            "vcpus": 6,
            "params": {"arch": "aarch64", "machine": "virt", "topology": {"sockets": 1, "clusters": 3, "threads": 2}},
        },
        base={"vcpus": 6, "params": {"arch": "aarch64", "machine": "virt"}},
        shows={"params.topology.clusters": (_most_now("cluster-id"), 3)},
        needs=("qemu-system-aarch64",),
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU says that the value holds, and that another one holds without it."""
    prove(effect)


@proves("params.cpu_enforce")
def test_enforcing_refuses_what_the_accelerator_lacks(host: Any, resolve: Callable[..., Any]) -> None:
    """A model with features that TCG has not does not start, and starts when that is not enforced."""
    with pytest.raises(SpawnFailed, match="doesn't support requested features"):
        host.driver.start_instance(resolve({"params": {"cpu_model": "EPYC"}}))
    host.driver.start_instance(resolve({"params": {"cpu_model": "EPYC", "cpu_enforce": False}}), paused=True)


_ALL = format_cpus(tuple(sorted(usable_cpus())))
_FIRST, _LAST = str(min(usable_cpus())), str(max(usable_cpus()))


def _vcpus(probe: Probe) -> list[str]:
    rows_ = sorted(probe.qmp("query-cpus-fast"), key=lambda row: row["cpu-index"])
    return [probe.affinity(row["thread-id"]) for row in rows_]


def _iothreads(probe: Probe) -> list[str]:
    return [probe.affinity(row["thread-id"]) for row in sorted(probe.qmp("query-iothreads"), key=lambda row: row["id"])]


@pytest.mark.skipif(_FIRST == _LAST, reason="the host has one CPU")
@proves("params.cpu_pin", "params.emulator_pin", "params.iothread_pin")
def test_threads_run_where_their_masks_say(begin: Any) -> None:
    """Each virtual CPU, each I/O thread and the rest have the CPUs of their own mask, as the kernel says."""
    plain = {"vcpus": 2, "params": {"iothreads": 2}}
    masks = {"cpu_pin": f"{_LAST}:all", "emulator_pin": _FIRST, "iothread_pin": f"{_FIRST}:{_LAST}"}
    with begin(plain, "without") as probe:
        assert (_vcpus(probe), _iothreads(probe), probe.affinity(probe.pid)) == ([_ALL, _ALL], [_ALL, _ALL], _ALL)
    with begin({**plain, "params": {**plain["params"], **masks}}) as probe:
        assert (_vcpus(probe), _iothreads(probe)) == ([_LAST, _ALL], [_FIRST, _LAST])
        assert probe.affinity(probe.pid) == _FIRST


@pytest.mark.skipif(_FIRST == _LAST, reason="the host has one CPU")
@proves("params.cpu_pin")
def test_one_mask_holds_for_the_whole_process(begin: Any) -> None:
    """A mask of one element pins every thread, QEMU's own ones included."""
    with begin({"vcpus": 2, "params": {"cpu_pin": _LAST, "iothreads": 1}}) as probe:
        threads = probe.threads()
        assert len(threads) > 3
        seen = set()
        for thread in threads:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a worker that has ended
                seen.add(probe.affinity(thread))
        assert seen == {_LAST}
