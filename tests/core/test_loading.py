"""Finding plugins without importing them, auditing them before use, loading exactly one driver."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Capability, Claim, ClaimLevel, DriverContext, DriverDescription, LoadError, hookimpl
from hvcore.registry import load_plugin


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}


DRIVER = """
    import hvcore
    from hvcore_fake.plugin import FakeDriver

    def make(context):
        return FakeDriver(context)
"""


def test_a_third_party_driver_is_found_used_and_gone(install: Any, settings: Any) -> None:
    """A driver in a package of its own is listed and loaded by its entry point."""
    install("acme-hv", "acme_driver", DRIVER, hvcore__drivers={"acme": "acme_driver:make"})
    (entry,) = [entry for entry in hvcore.available_drivers() if entry.name == "acme"]
    assert (entry.distribution, entry.version) == ("acme-hv", "1.0")
    with hvcore.load_driver("acme", settings) as driver:
        assert driver.name == "acme"
        assert driver.start_instance({"name": "web1"}).changed
        assert driver.stop_instance("web1", force=True).changed


def test_listing_imports_nothing(install: Any) -> None:
    """A plugin that cannot be imported is listed all the same."""
    install(
        "broken-hv", "broken_driver", "raise RuntimeError('no')", hvcore__drivers={"broken": "broken_driver:Nothing"}
    )
    assert "broken" in [entry.name for entry in hvcore.available_drivers()]
    assert "broken_driver" not in sys.modules


def test_a_broken_plugin_breaks_only_itself(install: Any, settings: Any) -> None:
    """Loading a broken driver names its distribution and its own exception; others load."""
    install(
        "broken-hv", "broken_driver", "raise RuntimeError('no luck')", hvcore__drivers={"broken": "broken_driver:X"}
    )
    with pytest.raises(LoadError, match=r"broken-hv 1\.0.*RuntimeError: no luck") as caught:
        hvcore.load_driver("broken", settings)
    assert caught.value.findings.codes == ("broken-plugin",)
    hvcore.load_driver("fake", settings).close()


def test_an_unknown_driver_names_the_known_ones(settings: Any) -> None:
    """A name nobody offers is answered with the names there are."""
    with pytest.raises(LoadError, match="fake.*kvm"):
        hvcore.load_driver("kwm", settings)


def test_two_distributions_with_one_name(install: Any, settings: Any) -> None:
    """A name offered twice is an error naming both, unless the settings prefer one."""
    install("one-hv", "one_driver", DRIVER, hvcore__drivers={"twin": "one_driver:make"})
    install("two-hv", "two_driver", DRIVER, hvcore__drivers={"twin": "two_driver:make"})
    with pytest.raises(LoadError, match="one-hv") as caught:
        hvcore.load_driver("twin", settings)
    assert "two-hv" in str(caught.value)
    hvcore.load_driver("twin", {**settings, "prefer": "two-hv"}).close()
    assert "two_driver" in sys.modules
    assert "one_driver" not in sys.modules


def test_a_third_party_nic_mode(install: Any, settings: Any) -> None:
    """A NIC mode in a package of its own brings its parameters, is checked and planned like a built-in one."""
    source = """
        import attrs
        from hvcore import param
        from hvcore_kvm import NicMode, NicPlan, hookimpl

        @attrs.frozen(kw_only=True)
        class GenevePort:
            vni: int = param(summary="Virtual network identifier.")

        class Geneve:
            def check(self, nic, parameters):
                return ()
            def check_host(self, nic, parameters):
                return ()
            def plan(self, context):
                hostname = f"v{context.parameters.vni}"
                return NicPlan(netdev={"type": "user", "id": context.netdev_id, "hostname": hostname})

        @hookimpl
        def kvm_nic_modes():
            yield NicMode(name="geneve", summary="Overlay port.", backend=Geneve(), parameters=GenevePort)
    """
    install("acme-net", "acme_net", source, hvcore_kvm__nic_modes={"geneve": "acme_net"})
    with hvcore.load_driver("kvm", settings) as driver:
        paths = {row.path for row in hvcore.parameter_rows(driver.parameters())}
        assert "nics[].params.vni" in paths
        bad = driver.check_parameter_syntax({"name": "w", "nics": [{"mode": "geneve", "params": {"vn": 1}}]})
        assert {(f.code, f.path) for f in bad} == {
            ("missing-parameter", "nics[0].params.vni"),
            ("unknown-parameter", "nics[0].params.vn"),
        }
        good = {"name": "w", "nics": [{"mode": "geneve", "params": {"vni": 7}}]}
        assert driver.check_parameter_syntax(good).ok


def test_a_family_name_offered_twice(install: Any, settings: Any) -> None:
    """A NIC mode that a built-in one has already is refused, naming both."""
    source = """
        from hvcore_kvm import NicMode, hookimpl

        @hookimpl
        def kvm_nic_modes():
            yield NicMode(name="user", summary="Mine.", backend=None)
            yield "not a record"
    """
    install("acme-net", "acme_net2", source, hvcore_kvm__nic_modes={"mine": "acme_net2"})
    with pytest.raises(LoadError) as caught:
        hvcore.load_driver("kvm", settings)
    assert set(caught.value.findings.codes) == {"duplicate-plugin", "missing-method", "wrong-record"}


def test_a_family_plugin_with_a_misspelt_hook(install: Any, settings: Any) -> None:
    """An unknown hook names the nearest one; nothing is silently never called."""
    source = "from hvcore_kvm import hookimpl\n@hookimpl\ndef kvm_nic_mods():\n    return ()\n"
    install("acme-net", "acme_net3", source, hvcore_kvm__nic_modes={"mine": "acme_net3"})
    with pytest.raises(LoadError, match=r"acme-net 1\.0.*kvm_nic_mods.*did you mean kvm_nic_modes"):
        hvcore.load_driver("kvm", settings)


def _context(tmp_path: Path) -> DriverContext:
    directories = hvcore.Directories(state=str(tmp_path), data=str(tmp_path), cache=str(tmp_path))
    return DriverContext(name="t", directories=directories, settings={}, host_id="h")


def _load(tmp_path: Path, plugin: object, **options: Any) -> hvcore.Driver:
    return load_plugin(plugin, _context(tmp_path), label="acme (acme-hv 1.0)", **options)


class _Empty:
    """A driver without hooks."""


def test_the_empty_driver_lacks_every_required_hook(tmp_path: Path) -> None:
    """Each required hook that is missing is named."""
    with pytest.raises(LoadError) as caught:
        _load(tmp_path, _Empty())
    required = {operation.hook for operation in hvcore.OPERATIONS if operation.capability is None}
    assert {finding.path.rpartition(" ")[2] for finding in caught.value.findings} == required
    assert set(caught.value.findings.codes) == {"missing-hook"}


def _fake(tmp_path: Path) -> Any:
    from hvcore_fake.plugin import FakeDriver

    return FakeDriver


def test_every_fault_of_a_driver_at_once(tmp_path: Path) -> None:
    """Misspelt hooks, wrong arguments, defaults, coroutines and generators are all reported, with signatures."""
    base = _fake(tmp_path)

    class Faulty(base):  # type: ignore[misc, valid-type]
        @hookimpl
        def hv_start_instnce(self) -> None: ...

        @hookimpl
        def hv_pause_instance(self, name: str, deadlin: object) -> None: ...

        @hookimpl
        def hv_resume_instance(self, name: str, deadline: object = None) -> None: ...

        @hookimpl
        async def hv_list_instances(self, deadline: object) -> None: ...

        @hookimpl
        def hv_cleanup_instance(self, name: str, **rest: object) -> None: ...

        @hookimpl
        def hv_verify(self, deadline: object) -> Any:
            yield

        @hookimpl
        def hv_operation(self, call: object) -> None: ...

    with pytest.raises(LoadError) as caught:
        _load(tmp_path, Faulty(_context(tmp_path)))
    assert set(caught.value.findings.codes) == {
        "unknown-hook",
        "wrong-argument",
        "argument-default",
        "coroutine-hook",
        "generator-hook",
        "driver-wraps",
    }
    text = str(caught.value)
    assert "did you mean hv_start_instance?" in text
    assert "did you mean deadline?" in text
    assert "acme (acme-hv 1.0): hv_pause_instance(name: 'str', deadlin: 'object')" in text


def _describing(tmp_path: Path, description: Any, without: str = "") -> object:
    base = type("Lacking", (_fake(tmp_path),), {without: None} if without else {})

    class Describing(base):  # type: ignore[misc, valid-type]
        @hookimpl
        def hv_describe_driver(self) -> DriverDescription:
            return description  # type: ignore[no-any-return]

    return Describing(_context(tmp_path))


def test_claims_need_hooks_and_api_must_match(tmp_path: Path) -> None:
    """A claim without its hooks, and another hook API, are faults."""
    claims = (Claim(capability=Capability.POWERCYCLE), Claim(capability=Capability.POWERCYCLE))
    description = DriverDescription(name="t", version="1", hook_api=99, summary="", claims=claims)
    with pytest.raises(LoadError) as caught:
        _load(tmp_path, _describing(tmp_path, description, without="hv_powercycle_node"))
    assert set(caught.value.findings.codes) == {"hook-api", "claim-without-hook", "repeated-claim"}
    with pytest.raises(LoadError, match="str, not a DriverDescription"):
        _load(tmp_path, _describing(tmp_path, "me"))


def test_what_is_not_claimed_is_refused(tmp_path: Path) -> None:
    """The facade refuses an operation whose capability is not offered, with the driver's reason, before its hook."""
    reason = "the hardware cannot"
    claims = (Claim(capability=Capability.PAUSE, level=ClaimLevel.IMPOSSIBLE, reason=reason),)
    description = DriverDescription(name="t", version="1", hook_api=1, summary="", claims=claims)
    with _load(tmp_path, _describing(tmp_path, description)) as driver:
        with pytest.raises(hvcore.UnsupportedOperation, match=reason):
            driver.pause_instance("web1")
        with pytest.raises(hvcore.UnsupportedOperation):
            driver.screenshot("web1")
        with pytest.raises(hvcore.UnsupportedOperation):
            driver.start_instance({"name": "web1"}, paused=True)


class Recorder:
    """An extension that notes what passes."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    @hookimpl(wrapper=True)
    def hv_operation(self, call: hvcore.OperationCall) -> Any:
        self.log.append(f"{self.name} before {call.name} {call.instance}")
        try:
            return (yield)
        finally:
            self.log.append(f"{self.name} after")


def test_extensions_wrap_every_operation_the_first_outermost(settings: Any) -> None:
    """Each operation passes through the extensions in the host's order."""
    log: list[str] = []
    extensions = [Recorder("a", log), Recorder("b", log)]
    with hvcore.load_driver("fake", settings, extensions=extensions) as driver:
        with pytest.raises(hvcore.InstanceNotFound):
            driver.get_instance_info("web1")
    assert log == [
        "a before get_instance_info web1",
        "b before get_instance_info web1",
        "b after",
        "a after",
    ]


def test_an_extension_can_refuse(settings: Any) -> None:
    """What an extension raises before the yield refuses the operation, and nothing is touched."""

    class Quota:
        @hookimpl(wrapper=True)
        def hv_operation(self, call: hvcore.OperationCall) -> Any:
            if call.name == "start_instance":
                raise hvcore.PolicyDenied("quota", hint="stop an instance first")
            return (yield)

    with hvcore.load_driver("fake", settings, extensions=[Quota()]) as driver:
        with pytest.raises(hvcore.PolicyDenied) as caught:
            driver.start_instance({"name": "web1"})
        assert (caught.value.driver, caught.value.operation, caught.value.instance) == (
            "fake",
            "start_instance",
            "web1",
        )
        assert driver.list_instances().instances == ()


def test_a_failing_extension_is_named(settings: Any) -> None:
    """A foreign exception of an extension is a typed error that names it."""

    class Broken:
        @hookimpl(wrapper=True)
        def hv_operation(self, call: hvcore.OperationCall) -> Any:
            yield
            raise ZeroDivisionError("oops")

    with hvcore.load_driver("fake", settings, extensions=[Recorder("a", []), Broken()]) as driver:
        with pytest.raises(hvcore.DriverFault, match="extension Broken.*ZeroDivisionError"):
            driver.list_instances()


def test_extensions_are_audited(settings: Any) -> None:
    """What does not wrap, or implements a driver's hook, is no extension."""

    class NoWrapper:
        @hookimpl
        def hv_operation(self, call: object) -> None: ...

    class Driverish:
        @hookimpl
        def hv_start_instance(self, instance: object) -> None: ...

    with pytest.raises(LoadError) as caught:
        hvcore.load_driver("fake", settings, extensions=[NoWrapper(), Driverish(), _Empty()])
    assert set(caught.value.findings.codes) == {"not-a-wrapper", "extension-hook", "missing-hook"}


@pytest.mark.parametrize("result", [None, "running", 5])
def test_a_driver_that_returns_rubbish_is_named(tmp_path: Path, result: Any) -> None:
    """A hook that returns no record, or another, is a fault of the driver."""
    base = _fake(tmp_path)

    class Rubbish(base):  # type: ignore[misc, valid-type]
        @hookimpl
        def hv_list_instances(self, deadline: object) -> Any:
            return result

    with _load(tmp_path, Rubbish(_context(tmp_path))) as driver:
        with pytest.raises(hvcore.DriverFault, match=r"acme-hv 1\.0.*hv_list_instances.*InstanceListing"):
            driver.list_instances()


def test_a_driver_that_raises_something_foreign_is_named(tmp_path: Path) -> None:
    """Foreign exceptions leave a driver as a DriverFault with the original as cause."""
    base = _fake(tmp_path)

    class Raising(base):  # type: ignore[misc, valid-type]
        @hookimpl
        def hv_list_instances(self, deadline: object) -> Any:
            raise KeyError("x")

    with _load(tmp_path, Raising(_context(tmp_path))) as driver:
        with pytest.raises(hvcore.DriverFault, match="KeyError") as caught:
            driver.list_instances()
        assert isinstance(caught.value.__cause__, KeyError)


def test_a_closed_driver_refuses(settings: Any) -> None:
    """After close every operation is refused, and closing again does nothing."""
    driver = hvcore.load_driver("fake", settings)
    driver.close()
    driver.close()
    with pytest.raises(hvcore.Refused) as caught:
        driver.list_instances()
    assert caught.value.code == "driver-closed"


def test_two_drivers_never_meet(settings: Any, tmp_path: Path) -> None:
    """Two loaded drivers have each their own state and extensions."""
    log: list[str] = []
    other = {key: f"{value}-other" for key, value in settings.items()}
    with (
        hvcore.load_driver("fake", settings, extensions=[Recorder("a", log)]) as one,
        hvcore.load_driver("fake", other) as two,
    ):
        two.start_instance({"name": "web1"})
        assert log == []
        assert one.list_instances().instances == ()


@pytest.mark.parametrize("key", ["state_directory", "data_directory", "cache_directory"])
@pytest.mark.parametrize("value", ["relative", "", "/a\0b", 5])
def test_directories_must_be_absolute(settings: Any, key: str, value: Any) -> None:
    """A directory that is no absolute path is refused when the driver is loaded."""
    with pytest.raises((LoadError, TypeError)):
        hvcore.load_driver("fake", {**settings, key: value})


def test_everything_exported_is_there() -> None:
    """Every public name can be imported, and type checkers see the same names."""
    source = Path(hvcore.__file__).read_text()
    for name in hvcore.__all__:
        assert getattr(hvcore, name) is not None
        assert name == "__version__" or f"{name} as {name}" in source
    with pytest.raises(AttributeError):
        hvcore.nothing  # noqa: B018
    assert isinstance(hvcore, types.ModuleType)


def test_importing_hvcore_imports_little() -> None:
    """``import hvcore`` loads no library; names come when they are used."""
    script = "import sys; import hvcore; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-I", "-c", script], check=True, capture_output=True, text=True).stdout
    for library in ("pluggy", "attr", "cattrs", "psutil", "json", "subprocess", "asyncio"):
        assert f"'{library}'" not in loaded


def test_what_the_model_reported_is_not_reported_again(tmp_path: Path) -> None:
    """A driver that stumbles over the empty value in place of a wrong one does not add to the findings."""
    base = _fake(tmp_path)

    class Stumbling(base):  # type: ignore[misc, valid-type]
        @hookimpl
        def hv_check_parameter_syntax(self, instance: hvcore.Instance) -> hvcore.FindingSet:
            paths = ("memory", "disks[0].path.x", "vcpus")
            return hvcore.FindingSet(hvcore.Finding(code="stumbled", path=path, message="is odd") for path in paths)

    with _load(tmp_path, Stumbling(_context(tmp_path))) as driver:
        found = driver.check_parameter_syntax({"name": "web1", "memory": "lots", "disks": [{"format": "raw"}]})
    assert {(f.code, f.path) for f in found} == {
        ("invalid-value", "memory"),
        ("missing-parameter", "disks[0].path"),
        ("stumbled", "vcpus"),
    }


def test_loading_and_closing_leaks_nothing(settings: Any) -> None:
    """However often a driver is loaded and closed, no object, descriptor or thread of it stays."""
    gone = []
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    for name in ("fake", "kvm") * 10:
        driver = hvcore.load_driver(name, settings, extensions=[Recorder("a", [])])
        gone += [weakref.ref(driver), weakref.ref(driver.plugin)]
        driver.list_instances()
        driver.close()
        del driver
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_probe_only_narrows(tmp_path: Path) -> None:
    """What a driver claims on a host may be less than in general, never more; the facade goes by what it is here."""
    general = (Claim(capability=Capability.PAUSE), Claim(capability=Capability.RESET, level=ClaimLevel.CONDITIONAL))
    with pytest.raises(ValueError, match="cannot widen reset"):
        general[1].narrowed(ClaimLevel.FULL, "surely")
    here = (general[0].narrowed(ClaimLevel.IMPOSSIBLE, "this host cannot"), general[1])

    def driver(claims: tuple[Claim, ...]) -> object:
        description = DriverDescription(name="t", version="1", hook_api=1, summary="", claims=claims)
        made: Any = _describing(tmp_path, description)
        made.claims = general
        return made

    with (
        _load(tmp_path, driver(here)) as loaded,
        pytest.raises(hvcore.UnsupportedOperation, match="this host cannot"),
    ):
        loaded.pause_instance("web1")
    wider = (Claim(capability=Capability.RESET), Claim(capability=Capability.CONSOLE))
    with pytest.raises(LoadError) as caught:
        _load(tmp_path, driver(wider))
    assert caught.value.findings.codes == ("widened-claim", "widened-claim")
