"""Parameters of the instance as a whole that change while its guest runs."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

import hvcore
from hvcore import Deadline, LiveParameters
from hvcore.guests import LINUX_COMMAND_LINE
from hvcore_kvm.affinity import host_thread_ids
from hvcore_kvm.qmp import QmpClient, QmpError

pytestmark = pytest.mark.qemu

MIB = 1 << 20
CPUS = sorted(os.sched_getaffinity(0))


def _ask(host: Any, command: str, **arguments: Any) -> Any:
    path = str(host.directory / "state/kvm/instances/web1/query")
    with QmpClient.connect(path, Deadline.after(30)) as client:
        return client.execute(command, arguments, deadline=Deadline.after(30))


def _get(host: Any, path: str, name: str) -> Any:
    return _ask(host, "qom-get", path=path, property=name)


def _set(host: Any, **values: Any) -> hvcore.HotplugResult:
    return host.driver.hot_mod_device("web1", LiveParameters(values=values), timeout=60)


def _changes(host: Any, definition: hvcore.Instance) -> list[tuple[str, str]]:
    return [(change.path, change.effect) for change in host.driver.plan_start(definition).changes]


@pytest.mark.skipif(len(CPUS) < 2, reason="one processor cannot be told from another")
def test_threads_are_pinned_anew(host: Any) -> None:
    """Virtual CPUs, I/O threads and the rest go where they are sent, and anywhere again when nothing is said."""
    first, second = CPUS[:2]
    params = {"iothreads": 1, "cpu_pin": str(first)}
    host.start(host.instance(vcpus=2, params=params))

    def where() -> tuple[list[set[int]], set[int], set[int]]:
        here = host_thread_ids(host.pid())  # a confined one numbers its threads otherwise
        vcpus = [os.sched_getaffinity(here[row["thread-id"]]) for row in _ask(host, "query-cpus-fast")]
        (thread,) = _ask(host, "query-iothreads")
        return vcpus, os.sched_getaffinity(here[thread["thread-id"]]), os.sched_getaffinity(host.pid())

    assert where() == ([{first}, {first}], {first}, {first})
    wanted = {"cpu_pin": f"{second}:{first}", "iothread_pin": str(second)}
    assert _set(host, **wanted).done
    anywhere = where()[2]
    assert where() == ([{second}, {first}], {second}, anywhere)
    assert {first, second} <= anywhere
    assert _changes(host, host.instance(vcpus=2, params={**params, **wanted})) == []
    assert _changes(host, host.instance(vcpus=2, params=params)) == [
        ("params.cpu_pin", "live"),
        ("params.iothread_pin", "live"),
    ]
    assert _set(host, cpu_pin=None, iothread_pin=None, emulator_pin=str(first)).done
    assert where() == ([anywhere, anywhere], anywhere, {first})


def test_what_qemu_does_at_an_end_and_limits_of_groups(host: Any) -> None:
    """The group has the new limits, the balloon reports, and a guest that restarts is shut down now."""
    host.start(host.instance(params={"throttle_groups": {"all": {"iops_total": 100, "bps_read": 5000}}}))
    assert _set(
        host,
        throttle_groups={"all": {"iops_total": 200, "bps_write": "1MiB"}},
        balloon_stats_interval=3,
        memory_min="32MiB",
    ).done
    limits = _get(host, "/objects/group-all", "limits")
    assert (limits["iops-total"], limits["bps-read"], limits["bps-write"]) == (200, 0, 1 << 20)
    assert _get(host, "/machine/peripheral/balloon0", "guest-stats-polling-interval") == 3
    assert _set(host, on_reboot="shutdown", on_panic="pause").detail == "changed: on_reboot, on_panic"
    with contextlib.suppress(QmpError):  # it may end before its answer has left
        _ask(host, "system_reset")
    host.wait_end()


@pytest.mark.parametrize(
    ("values", "code", "path"),
    [
        ({"machine": "q35"}, "not-possible", "params.machine"),
        ({"throttle_groups": {"more": {"iops_total": 1}}}, "not-possible", "params.throttle_groups"),
        ({"cpu_pin": "x"}, "invalid-value", "params.cpu_pin"),
        ({"cpu_pin": "8191"}, "no-such-cpu", "params.cpu_pin"),
        ({"memory_plugged": "64MiB"}, "contradiction", "params.memory_plugged"),
        ({"nonsense": 1}, "unknown-parameter", "params.nonsense"),
        ({1: 2}, "wrong-type", "params"),
        ("text", "wrong-type", "params"),
    ],
)
def test_what_cannot_change_changes_nothing(host: Any, whole: Any, values: Any, code: str, path: str) -> None:
    """Everything that stands against it is said, with its path, and nothing is different."""
    host.start(host.instance(params={"throttle_groups": {"all": {"iops_total": 100}}}))
    before = whole()
    given = {"on_panic": "pause", **values} if isinstance(values, dict) else values
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.hot_mod_device("web1", LiveParameters(values=given))
    assert [(f.code, f.path) for f in caught.value.findings] == [(code, path)]
    assert whole() == before


def test_a_refusal_takes_back_what_was_done(host: Any, whole: Any) -> None:
    """QEMU refuses a size that is no whole number of its blocks; what came before it is as it was."""
    params = {"machine": "q35", "memory_max": "1GiB", "virtio_mem": "256MiB"}
    host.start(host.instance(params=params))
    before = whole()
    with pytest.raises(hvcore.HypervisorRefused, match="requested-size"):
        _set(host, memory_plugged="3MiB", balloon_stats_interval=7)
    assert _get(host, "/machine/peripheral/balloon0", "guest-stats-polling-interval") == 0
    assert whole() == before
    # This guest does not know the device: it is asked, and that is written down.
    result = host.driver.hot_mod_device("web1", LiveParameters(values={"memory_plugged": "64MiB"}), timeout=1)
    assert (result.device, result.done) == ("params", False)
    assert _get(host, "/machine/peripheral/virtio-mem0", "requested-size") == 64 * MIB
    assert _changes(host, host.instance(params={**params, "memory_plugged": "64MiB"})) == []


@pytest.mark.linux
def test_memory_comes_and_goes(host: Any, boot: Any) -> None:
    """The guest sees more memory, uses it, and gives it back; the next start has what was asked for last."""
    cmdline = f"{LINUX_COMMAND_LINE} memhp_default_state=online_movable"
    params = {"memory_max": "1GiB", "virtio_mem": "256MiB", "cmdline": cmdline}
    shell = boot("q35", params=params)
    total = "$(($(grep MemTotal /proc/meminfo | tr -dc 0-9) / 1024))"
    before = int(shell.run(f"echo {total}"))
    assert _set(host, memory_plugged="128MiB").done
    shell.wait(f"[ {total} -gt {before + 100} ]")
    assert int(shell.run(f"echo {total}")) <= before + 128
    assert _set(host, memory_plugged="0MiB").done
    shell.wait(f"[ {total} -le {before + 2} ]")
    assert _get(host, "/machine/peripheral/virtio-mem0", "size") == 0
    _set(host, memory_plugged="128MiB")
    host.driver.reboot_instance("web1", mode="hard")
    assert _get(host, "/machine/peripheral/virtio-mem0", "requested-size") == 128 * MIB


def test_everything_that_has_changed_is_named(host: Any) -> None:
    """Beside what the guest has to follow, and has not."""
    host.start(host.instance())
    wanted = LiveParameters(values={"balloon_target": "32MiB", "on_panic": "pause"})
    result = host.driver.hot_mod_device("web1", wanted, timeout=0.1)
    assert (result.done, result.detail.partition(";")[0]) == (False, "changed: on_panic")
