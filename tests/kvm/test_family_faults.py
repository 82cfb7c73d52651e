"""Family plugins that break their promises: the error names plugin and distribution, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Nic

_PLUGIN = """
    import os
    import attrs
    from hvcore import Console, Finding, param
    from hvcore_kvm import (
        ConsolePlan, ConsoleType, FdRequest, NicMode, NicPlan, SecurityModel, SecurityPlan, Step, hookimpl,
    )

    MARKS = {marks!r}

    def put(name):
        os.close(os.open(os.path.join(MARKS, name), os.O_CREAT | os.O_WRONLY))

    def take(name):
        if os.path.exists(os.path.join(MARKS, name)):
            os.unlink(os.path.join(MARKS, name))

    def broken():
        return {{}}["broken"]

    @attrs.frozen(kw_only=True)
    class Parameters:
        fault: str = param(default="", summary="Where it is broken.")

    def rule(parameters):
        if parameters.fault == "rule":
            broken()
        return ()

    class Common:
        def check(self, thing, parameters):
            if parameters.fault == "check":
                yield broken()
            if parameters.fault == "check returns":
                yield "no finding"

        def check_host(self, thing, parameters):
            if parameters.fault == "check_host":
                broken()
            return ()

    class Mode(Common):
        def plan(self, context):
            fault = context.parameters.fault
            uuid = context.nic.uuid
            if fault == "plan":
                broken()
            if fault == "plan returns":
                return "no plan"
            if fault == "plan names":
                return NicPlan(netdev={{"type": "user", "id": "mine"}})
            if fault == "later plan" and os.path.exists(os.path.join(MARKS, "late")):
                broken()
            if fault == "open":
                context.fd(FdRequest(name="a tap", purpose="none", open=broken))
            up = [Step(name="first", do=lambda: put(f"nic-{{uuid}}"), undo=lambda: take(f"nic-{{uuid}}"))]
            if fault == "step":
                up.append(Step(name="second", do=broken))
            if fault == "system":
                up.append(Step(name="second", do=lambda: os.open("/no/such/fabric", os.O_RDONLY)))
            if fault == "undo":
                up.append(Step(name="second", do=broken, undo=broken))
            down = [Step(name="last", do=lambda: take(f"nic-{{uuid}}"))]
            if fault == "down":
                down.append(Step(name="gone", do=broken))
            netdev = {{"type": "user", "id": context.netdev_id}}
            return NicPlan(netdev=netdev, up=tuple(up), down=tuple(down))

    class Model(Common):
        def plan(self, instance, parameters):
            if parameters.fault == "plan":
                broken()
            if parameters.fault == "plan returns":
                return None
            steps = [Step(name="first", do=lambda: put("model"), undo=lambda: take("model"))]
            if parameters.fault == "step":
                steps.append(Step(name="second", do=broken))
            return SecurityPlan(steps=tuple(steps))

    class Type(Common):
        def plan(self, context):
            if context.parameters.fault == "plan":
                broken()
            return None if context.parameters.fault == "plan returns" else ConsolePlan()

        def endpoint(self, context):
            if context.parameters.fault == "endpoint":
                broken()
            return "nowhere"

    @hookimpl
    def kvm_nic_modes():
        yield NicMode(name="shaky", summary="Breaks.", backend=Mode(), parameters=Parameters, rules=(rule,))

    @hookimpl
    def kvm_security_models():
        yield SecurityModel(name="shaky-model", summary="Breaks.", backend=Model(), parameters=Parameters)

    @hookimpl
    def kvm_console_types():
        yield ConsoleType(name="shaky-type", summary="Breaks.", backend=Type(), parameters=Parameters)
"""


@pytest.fixture
def marks(install: Any, tmp_path: Path) -> Path:
    """The plugins are installed; where their steps leave marks."""
    directory = tmp_path / "marks"
    directory.mkdir()
    groups = {"hvcore_kvm__nic_modes": {"shaky": "acme_shaky"}}
    install("acme-shaky", "acme_shaky", _PLUGIN.format(marks=str(directory)), **groups)
    return directory


def _nic(fault: str) -> dict[str, Any]:
    return {"nics": [Nic(mode="shaky", params={"fault": fault})]}


def _model(fault: str) -> dict[str, Any]:
    return {"security_model": "shaky-model", "params": {"shaky-model": {"fault": fault}}}


def _type(fault: str) -> dict[str, Any]:
    return {"consoles": ["serial", "shaky-type"], "params": {"shaky-type": {"fault": fault}}}


_KEY_ERROR = r"raised KeyError in {}: 'broken'"


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("changes", "who", "words"),
    [
        (_nic("rule"), "NIC mode shaky", "raised KeyError in a rule"),
        (_nic("check"), "NIC mode shaky", "raised KeyError in check:"),
        (_nic("check returns"), "NIC mode shaky", "returned str from check; expected Findings"),
        (_nic("check_host"), "NIC mode shaky", "raised KeyError in check_host"),
        (_nic("plan"), "NIC mode shaky", "raised KeyError in plan"),
        (_nic("plan returns"), "NIC mode shaky", "returned str from plan; expected a NicPlan"),
        (_nic("plan names"), "NIC mode shaky", "planned a netdev 'mine'; its id has to be"),
        (_nic("open"), "NIC mode shaky", "raised KeyError in opening a tap"),
        (_nic("step"), "NIC mode shaky", "raised KeyError in step 'second'"),
        (_nic("undo"), "NIC mode shaky", "raised KeyError in step 'second'"),
        (_model("check"), "security model shaky-model", "raised KeyError in check:"),
        (_model("plan"), "security model shaky-model", "raised KeyError in plan"),
        (_model("plan returns"), "security model shaky-model", "returned NoneType from plan"),
        (_model("step"), "security model shaky-model", "raised KeyError in step 'second'"),
        (_type("check"), "console type shaky-type", "raised KeyError in check:"),
        (_type("check_host"), "console type shaky-type", "raised KeyError in check_host"),
        (_type("plan"), "console type shaky-type", "raised KeyError in plan"),
        (_type("plan returns"), "console type shaky-type", "returned NoneType from plan"),
    ],
)
def test_a_fault_names_the_plugin_and_leaves_nothing(
    changes: dict[str, Any], who: str, words: str, marks: Path, make_host: Any
) -> None:
    """Wherever it is, it is a DriverFault with plugin and distribution; what was begun is undone."""
    host = make_host()
    with pytest.raises(hvcore.DriverFault) as caught:
        host.driver.start_instance(host.instance(**changes))
    assert caught.value.message.startswith(f"{who} (acme-shaky 1.0) ")
    assert words in caught.value.message
    assert caught.value.instance == "web1"
    assert isinstance(caught.value.__cause__, KeyError) or "returned" in words or "planned" in words
    # An undo that fails leaves the journal, for the next who looks.
    if changes != _nic("undo"):
        assert host.files() == set()
    host.driver.cleanup_instance("web1")
    assert (list(marks.iterdir()), host.files()) == ([], set())


@pytest.mark.qemu
def test_an_undo_that_fails_does_not_keep_the_others_from_being_undone(marks: Path, make_host: Any) -> None:
    """The first step is taken back, and the error has both faults."""
    host = make_host()
    with pytest.raises(hvcore.DriverFault) as caught:
        host.driver.start_instance(host.instance(**_nic("undo")))
    assert any("KeyError in undoing 'second'" in note for note in caught.value.__notes__)
    assert list(marks.iterdir()) == []


@pytest.mark.qemu
def test_what_the_kernel_refuses_in_a_step_is_an_error_of_the_host(marks: Path, make_host: Any) -> None:
    """It is no defect of the plugin; its words, and who asked, are in the error."""
    host = make_host()
    with pytest.raises(hvcore.HostError) as caught:
        host.driver.start_instance(host.instance(**_nic("system")))
    wanted = "NIC mode shaky (acme-shaky 1.0): step 'second': No such file or directory: /no/such/fabric"
    assert (caught.value.code, caught.value.message) == ("plugin-step-failed", wanted)
    assert (list(marks.iterdir()), host.files()) == ([], set())


@pytest.mark.qemu
@pytest.mark.parametrize(("fault", "words"), [("down", "KeyError in step 'gone'"), ("later plan", "KeyError in plan")])
def test_a_stop_that_cannot_take_everything_down_says_so(fault: str, words: str, marks: Path, make_host: Any) -> None:
    """QEMU is gone, everything else is taken down, and the stop can be repeated."""
    host = make_host()
    host.start(host.instance(nics=[Nic(mode="shaky", params={"fault": fault})], security_model="shaky-model"))
    (marks / "late").touch()
    with pytest.raises(hvcore.OperationFailed, match=words) as caught:
        host.driver.stop_instance("web1", force=True)
    assert "(acme-shaky 1.0)" in caught.value.message
    assert not (marks / "model").exists()
    assert host.driver.list_instances().instances[0].pid is None or not host.driver.list_instances().instances[0].alive
    source = Path(os.fspath(marks)).parent / "site" / "acme_shaky.py"
    assert source.exists()
    (marks / "late").unlink()
    if fault == "down":
        _mend()
    host.driver.stop_instance("web1", force=True)
    assert [path.name for path in marks.iterdir()] == []


def _mend() -> None:
    import acme_shaky

    acme_shaky.broken = lambda: None


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("fault", "words"), [("endpoint", "raised KeyError in endpoint"), ("", "returned str from endpoint")]
)
def test_a_console_that_cannot_say_where_it_is(fault: str, words: str, marks: Path, make_host: Any) -> None:
    """The instance runs on."""
    host = make_host()
    host.start(host.instance(**_type(fault)))
    with pytest.raises(hvcore.DriverFault, match=words) as caught:
        host.driver.get_instance_console("web1", "shaky-type")
    assert caught.value.message.startswith("console type shaky-type (acme-shaky 1.0) ")
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING


_RECORDS = """
    from hvcore_kvm import ConsoleType, NicMode, SecurityModel, hookimpl

    class Backend:
        def check(self, thing, parameters):
            return ()

    @hookimpl
    def kvm_nic_modes():
        yield NicMode(name="lacking", summary="Lacks methods.", backend=Backend())
        yield NicMode(name="Bad Name,", summary="x", backend=Backend())
        yield NicMode(name="user", summary="Takes a name.", backend=Backend())

    @hookimpl
    def kvm_security_models():
        raise ValueError("no models today")

    @hookimpl
    def kvm_console_types():
        yield ConsoleType(name="plain", summary="", backend=None, parameters=3)
"""


def test_everything_wrong_with_the_records_is_said_at_once(install: Any, tmp_path: Path) -> None:
    """Before anything of the plugin is used: missing methods, names, exceptions, each with its distribution."""
    install("acme-records", "acme_records", _RECORDS, hvcore_kvm__nic_modes={"records": "acme_records"})
    settings = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    with pytest.raises(hvcore.LoadError) as caught:
        hvcore.load_driver("kvm", settings)
    found = [(finding.code, finding.message) for finding in caught.value.findings]
    assert {finding.path for finding in caught.value.findings} <= {
        "NIC mode records (acme-records 1.0)",
        f"NIC mode user (hvcore {hvcore.__version__})",
    }
    assert ("missing-method", "NIC mode lacking has a backend without check_host and plan") in found
    assert ("broken-plugin", "kvm_security_models raised ValueError: no models today") in found
    assert ("wrong-record", "console type plain has parameters that are no attrs class") in found
    assert ("wrong-record", "console type plain has no summary of one sentence") in found
    assert any("'Bad Name,' is no name for a NIC mode" in message for _, message in found)
    assert any(code == "duplicate-plugin" and "NIC mode user is offered by" in message for code, message in found)
