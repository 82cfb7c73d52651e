"""Looking at instances and the host: what is told, what is refused, what stays untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvcore import (
    Capability,
    Driver,
    Instance,
    InstanceNotFound,
    InstanceState,
    InvalidParameters,
    NotRunning,
    PolicyDenied,
    UnsupportedOperation,
    read_node_info,
)
from hvcore_fake import World

Load = Callable[..., Driver]
Files = Callable[[], dict[str, bytes]]

WEB = Instance(name="web1", memory="256MiB", vcpus=2)


def test_the_description_names_driver_and_claims(driver: Driver) -> None:
    """What the driver offers is claimed in full, the rest not at all."""
    description = driver.describe_driver()

    assert description.name == "fake"
    assert description.claim(Capability.EVENTS).offered
    assert not description.claim(Capability.SCREENSHOT).offered


def test_what_is_not_claimed_is_refused(driver: Driver) -> None:
    """The refusal names the capability."""
    with pytest.raises(UnsupportedOperation, match="screenshot"):
        driver.screenshot("web1")


def test_info_of_a_running_instance(driver: Driver) -> None:
    """Sizes, processors and process are those of the definition."""
    driver.start_instance(WEB)

    info = driver.get_instance_info("web1")
    assert (info.memory, info.memory_max, info.vcpus, info.uptime) == (2**28, 2**28, 2, 0.0)
    assert info.pid is not None
    assert info.uuid is not None


def test_all_infos_are_those_of_the_list(driver: Driver) -> None:
    """Sorted by name, stopped ones left out, the same records as one by one."""
    for name in ("web2", "web1", "web3"):
        driver.start_instance(Instance(name=name))
    driver.stop_instance("web3")

    infos = driver.get_all_instances_info().instances
    assert [info.name for info in infos] == ["web1", "web2"]
    assert list(infos) == [driver.get_instance_info(name) for name in ("web1", "web2")]


@pytest.mark.parametrize("query", ["get_instance_info", "verify_instance", "get_instance_console"])
def test_an_unknown_name_is_not_found(driver: Driver, query: str) -> None:
    """A name that was never started has no account."""
    with pytest.raises(InstanceNotFound):
        getattr(driver, query)("web1")


def test_queries_change_nothing(driver: Driver, files: Files) -> None:
    """All of them leave every file as it is."""
    driver.start_instance(WEB)
    before = files()
    driver.list_instances()
    driver.get_instance_info("web1")
    driver.get_all_instances_info()
    driver.verify_instance("web1")
    driver.get_instance_console("web1")
    driver.get_node_info()
    driver.verify()
    driver.validate_parameters(WEB)
    driver.assess_parameters(WEB)
    driver.plan_start(WEB)

    assert files() == before


def test_a_damaged_record_hides_no_other_instance(driver: Driver, tmp_path: Path) -> None:
    """It is listed and told as damaged, the other is told in full, and it can be stopped by name."""
    for name in ("web1", "web2"):
        driver.start_instance(Instance(name=name))
    (tmp_path / "state/fake/instances/web1/record.json").write_text("{")

    infos = driver.get_all_instances_info().instances
    assert [bool(info.incomplete) for info in infos] == [True, False]
    assert driver.verify_instance("web1").codes == ("record-damaged",)
    assert driver.stop_instance("web1", force=True).after is InstanceState.STOPPED
    assert not (tmp_path / "state/fake/instances/web1").exists()


def test_a_damaged_record_of_a_dead_instance_is_unknown(driver: Driver, world: World, tmp_path: Path) -> None:
    """Nobody can tell how it ended; a stop cleans it up."""
    driver.start_instance(WEB)
    world.kill("web1")
    (tmp_path / "state/fake/instances/web1/record.json").write_text("{")

    assert driver.get_instance_info("web1").state is InstanceState.UNKNOWN
    driver.stop_instance("web1")
    assert driver.list_instances().instances == ()


def test_a_console_is_described(driver: Driver) -> None:
    """It is the serial one, and says that it is modelled."""
    driver.start_instance(WEB)

    console = driver.get_instance_console("web1")
    assert (console.kind, console.socket_path, bool(console.message)) == ("serial", None, True)


def test_a_console_that_is_not_offered_is_refused(driver: Driver) -> None:
    """The finding says which are."""
    driver.start_instance(WEB)

    with pytest.raises(InvalidParameters) as caught:
        driver.get_instance_console("web1", "vnc")
    assert caught.value.findings.codes == ("unknown-console",)


def test_a_stopped_instance_has_no_console(driver: Driver) -> None:
    """It is not running."""
    driver.start_instance(WEB)
    driver.stop_instance("web1")

    with pytest.raises(NotRunning):
        driver.get_instance_console("web1")


def test_running_instances_use_memory_of_the_host(driver: Driver) -> None:
    """Free memory is what would be left, never below nothing."""
    driver.start_instance(Instance(name="huge", memory=2**50))

    facts = driver.get_node_info()
    assert facts.memory_free == 0
    assert facts.memory_used == facts.memory_total == read_node_info().memory_total
    assert facts.hypervisor[0][0] == "fake-hypervisor"


def test_a_healthy_host_has_no_findings(driver: Driver) -> None:
    """Neither empty nor with a running instance."""
    assert driver.verify().codes == ()
    driver.start_instance(WEB)

    assert driver.verify().codes == ()


def test_a_powercycle_is_only_noted(load: Load) -> None:
    """The host is never restarted; without the setting it is not even noted."""
    with pytest.raises(PolicyDenied):
        load().powercycle_node()
    driver = load(allow_powercycle=True)
    driver.powercycle_node()

    assert World.of(driver).powercycles == 1


def test_there_are_no_ancillary_files(driver: Driver) -> None:
    """A modelled hypervisor needs nothing on the host."""
    assert driver.get_ancillary_files().files == ()


def test_a_plan_says_what_a_start_would_do(driver: Driver, files: Files) -> None:
    """The same each time, in the words of the definition, and without a file."""
    plan = driver.plan_start(WEB, paused=True)

    assert plan == driver.plan_start(WEB, paused=True)
    assert plan.argv[:3] == ("fake-hypervisor", "--name", "web1")
    assert "resume" not in plan.steps
    assert files() == {}
