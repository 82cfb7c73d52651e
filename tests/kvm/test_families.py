"""Family plugins of others: their steps are done and taken back, also when something fails or somebody is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import InstanceState

pytestmark = pytest.mark.qemu

# A NIC mode and a security model whose steps leave a mark on the host, and an observer.
_PLUGIN = """
    import os
    import attrs
    from hvcore import param
    from hvcore_kvm import NicMode, NicPlan, SecurityModel, SecurityPlan, Step, hookimpl

    MARKS = {marks!r}

    def mark(name):
        os.close(os.open(os.path.join(MARKS, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def unmark(name):
        with open(os.path.join(MARKS, "log"), "a") as log:
            log.write(f"unmark {{name}}\\n")
        try:
            os.unlink(os.path.join(MARKS, name))
        except FileNotFoundError:
            pass

    @attrs.frozen(kw_only=True)
    class Parameters:
        fails: bool = param(default=False, summary="Fail in the second step.")

    class Marked:
        def check(self, nic, parameters):
            return ()
        def check_host(self, nic, parameters):
            return ()
        def plan(self, context):
            name = "nic-" + context.nic.uuid
            def fail():
                raise OSError("the fabric is down")
            steps = [Step(name="mark", do=lambda: mark(name), undo=lambda: unmark(name))]
            if context.parameters.fails:
                steps.append(Step(name="join the fabric", do=fail))
            down = (Step(name="unmark", do=lambda: unmark(name)),)
            netdev = {{"type": "user", "id": context.netdev_id}}
            return NicPlan(netdev=netdev, interface="fab0", up=tuple(steps), down=down)

    class Leased:
        def check(self, instance, parameters):
            return ()
        def check_host(self, instance, parameters):
            return ()
        def plan(self, instance, parameters):
            name = "lease-" + instance.name
            step = Step(name="lease", do=lambda: mark(name), undo=lambda: unmark(name))
            return SecurityPlan(steps=(step,), launcher=("/usr/bin/env", "--ignore-signal=PIPE"))

    @hookimpl
    def kvm_nic_modes():
        yield NicMode(name="marked", summary="Leaves a mark.", backend=Marked(), parameters=Parameters)

    @hookimpl
    def kvm_security_models():
        yield SecurityModel(name="leased", summary="Leaves a lease.", backend=Leased())

    @hookimpl
    def kvm_interface_changed(event):
        with open(os.path.join(MARKS, "events"), "a") as log:
            log.write(f"{{event.interface}} {{event.instance}} {{event.change}}\\n")
        raise RuntimeError("an observer that fails breaks nothing")
"""


@pytest.fixture
def marks(install: Any, tmp_path: Path) -> Path:
    directory = tmp_path / "marks"
    directory.mkdir()
    groups = {"hvcore_kvm__nic_modes": {"marked": "acme_marks"}}
    install("acme-marks", "acme_marks", _PLUGIN.format(marks=str(directory)), **groups)
    return directory


def _marked(marks: Path) -> set[str]:
    return {path.name.split("-")[0] for path in marks.iterdir() if "-" in path.name}


def _instance(host: Any, **params: Any) -> hvcore.Instance:
    found: hvcore.Instance = host.instance(security_model="leased", nics=[hvcore.Nic(mode="marked", params=params)])
    return found


def test_steps_are_done_at_start_and_taken_back_once_the_process_is_gone(marks: Path, make_host: Any) -> None:
    """What the plugins put up stands while the instance runs, and is down after its stop; observers see both."""
    host = make_host()
    plan = host.driver.plan_start(_instance(host))
    assert any("mark" in step for step in plan.steps)
    assert any("lease" in step for step in plan.steps)
    assert _marked(marks) == set()
    host.start(_instance(host))
    assert _marked(marks) == {"nic", "lease"}
    host.driver.stop_instance("web1", timeout=30, escalate=False)
    assert _marked(marks) == set()
    assert (marks / "events").read_text() == "fab0 web1 up\nfab0 web1 down\n"
    assert sorted((marks / "log").read_text().split()[1::2])[0].startswith("lease-")
    assert len((marks / "log").read_text().splitlines()) == 2, "each down step is done once"


def test_a_failing_step_undoes_those_before_it(marks: Path, make_host: Any) -> None:
    """When a later step of a NIC fails, nothing is left and the reason is told."""
    host = make_host()
    with pytest.raises(hvcore.HypervisorError, match="the fabric is down"):
        host.driver.start_instance(_instance(host, fails=True))
    assert _marked(marks) == set()
    assert host.files() == set()


def test_the_marks_of_an_instance_that_died_go_with_its_cleanup(marks: Path, make_host: Any) -> None:
    """A guest that powered itself off keeps what it had until somebody stops, starts or forgets it."""
    host = make_host()
    console = host.start(_instance(host))
    console.send(b"q")
    host.wait_end()
    assert _marked(marks) == {"nic", "lease"}
    host.driver.start_instance(_instance(host))
    assert _marked(marks) == {"nic", "lease"}
    host.driver.stop_instance("web1", force=True)
    assert _marked(marks) == set()


_KILLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[3])
import hvcore
from hvcore_kvm import process
process.spawn = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
driver.start_instance(json.loads(sys.argv[2]))
"""


def test_the_marks_of_a_killed_start_are_taken_down_by_recovery(marks: Path, make_host: Any) -> None:
    """A host application killed after the steps and before QEMU leaves marks that recovery finds and takes down."""
    host = make_host()
    params = {"machine": "pc", "accel": "tcg", "firmware_image": str(host.firmware)}
    definition = {"name": "web1", "params": params, "security_model": "leased", "nics": [{"mode": "marked"}]}
    site = str(marks.parent / "site")
    command = [sys.executable, "-c", _KILLED, json.dumps(host.settings), json.dumps(definition), site]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    assert _marked(marks) == {"nic", "lease"}
    (found,) = host.driver.recover().instances
    assert (found.operation, found.outcome) == ("start", "undone")
    assert _marked(marks) == set()
    assert host.files() == set()


def test_the_launcher_of_a_security_model_runs_qemu_in_the_same_process(marks: Path, make_host: Any) -> None:
    """A launcher executes what follows it, so the process that was started is QEMU."""
    host = make_host()
    host.start(_instance(host))
    assert os.readlink(f"/proc/{host.pid()}/exe").endswith("qemu-system-x86_64")
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
