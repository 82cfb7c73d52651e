"""Policy: rules in order, the first that decides; refused before anything is touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Allow, Deny, MaxRunning, OperationCall, Policy, PolicyDenied

Load = Callable[..., hvcore.Driver]

PATIENCE = 60.0


def _allowed(driver: hvcore.Driver, operation: str, *arguments: Any) -> bool:
    try:
        getattr(driver, operation)(*arguments)
    except PolicyDenied:
        return False
    return True


def test_deny_by_operation_and_instance(load: Load) -> None:
    """Names are patterns; the error carries reason and hint."""
    driver = load(Policy([Deny("stop_*", instance="db-*", reason="databases stay up", hint="ask the owner")]))
    assert _allowed(driver, "stop_instance", "web1")
    assert _allowed(driver, "list_instances")
    with pytest.raises(PolicyDenied, match="databases stay up") as caught:
        driver.stop_instance("db-1")
    assert (caught.value.hint, caught.value.instance, caught.value.outcome) == ("ask the owner", "db-1", "refused")


def test_a_rule_for_an_instance_matches_no_operation_about_none(load: Load) -> None:
    """Even with the pattern that every name matches."""
    driver = load(Policy([Deny(instance="*")]))
    assert _allowed(driver, "list_instances")
    assert not _allowed(driver, "stop_instance", "web1")


def test_deny_by_driver(load: Load) -> None:
    """One policy may be given to several drivers."""
    policy = Policy([Deny("stop_instance", driver="o*")])
    assert not _allowed(load(policy, name="one"), "stop_instance", "web1")
    assert _allowed(load(policy, name="two"), "stop_instance", "web1")


def test_the_first_rule_that_decides(load: Load) -> None:
    """Allow before Deny is an exception; Deny() as the last refuses everything else."""
    driver = load(Policy([Allow("list_instances"), Allow("stop_*", instance="web?"), Deny()]))
    assert _allowed(driver, "list_instances")
    assert _allowed(driver, "stop_instance", "web1")
    assert not _allowed(driver, "stop_instance", "web10")
    assert not _allowed(driver, "get_node_info")


def test_rules_that_are_callables(load: Load) -> None:
    """A callable refuses, allows, or leaves it to the next."""
    seen: list[str] = []

    def look(call: OperationCall) -> PolicyDenied | bool | None:
        seen.append(call.name)
        if call.instance == "web1":
            return PolicyDenied("no")
        return True if call.instance == "web2" else None

    driver = load(Policy([look, Deny("stop_instance")]))
    answers = [_allowed(driver, "stop_instance", name) for name in ("web1", "web2", "web3")]
    assert (answers, seen) == ([False, True, False], ["stop_instance"] * 3)


@pytest.mark.parametrize("verdict", [False, "no", 0, PolicyDenied])
def test_a_rule_that_returns_rubbish(load: Load, verdict: Any) -> None:
    """It refuses the operation with a fault that names the policy; nothing is taken for yes."""
    with pytest.raises(hvcore.DriverFault, match="extension Policy #1 raised TypeError"):
        load(Policy([lambda call: verdict])).stop_instance("web1")


def test_a_rule_has_to_be_callable() -> None:
    """Rubbish among the rules is found when they are given."""
    with pytest.raises(TypeError, match="not str"):
        Policy(["stop_instance"])  # type: ignore[list-item]


def test_a_maximum_of_running_instances(fake_settings: Any) -> None:
    """Those that live count, whoever started them; what ended makes room; starting one that lives is no start."""
    with (
        hvcore.load_driver("fake", fake_settings) as other,
        hvcore.load_driver("fake", fake_settings, extensions=[Policy([MaxRunning(2)])]) as driver,
    ):
        other.start_instance({"name": "web1"})
        driver.start_instance({"name": "web2"})
        with pytest.raises(PolicyDenied, match="2 instances are alive or being started, and 2 may be"):
            driver.start_instance({"name": "web3"})
        with pytest.raises(hvcore.AlreadyRunning):
            driver.start_instance({"name": "web2"})
        driver.reboot_instance("web1", mode="hard")
        driver.stop_instance("web1", force=True)
        driver.start_instance({"name": "web3"})


def test_an_exception_from_the_maximum(fake_settings: Any) -> None:
    """An Allow before it is an exception."""
    policy = Policy([Allow("start_instance", instance="infra-*"), MaxRunning(0, driver="f*")])
    with hvcore.load_driver("fake", fake_settings, extensions=[policy]) as driver:
        driver.start_instance({"name": "infra-1"})
        assert not _allowed(driver, "start_instance", {"name": "web1"})
    elsewhere = Policy([MaxRunning(0, driver="kvm")])
    with hvcore.load_driver("fake", fake_settings, extensions=[elsewhere]) as driver:
        assert _allowed(driver, "start_instance", {"name": "web1"})


def test_starts_side_by_side_do_not_pass_the_maximum_together(load: Load) -> None:
    """A start that has not come back counts already, and no longer once it has failed."""
    together = threading.Barrier(6)
    decided = threading.Event()
    started: list[str] = []
    refused: list[str] = []

    def start() -> Any:
        started.append("x")
        if len(started) > 2:
            decided.set()
        # Those that are in stay in until all the others have been refused, or one of them has not.
        decided.wait(PATIENCE)
        raise hvcore.SpawnFailed("no")

    driver = load(Policy([MaxRunning(2)]), answers={"start_instance": start})

    def work(name: str) -> None:
        together.wait(PATIENCE)
        try:
            driver.start_instance({"name": name})
        except PolicyDenied:
            refused.append(name)
            if len(refused) == 4:
                decided.set()
        except hvcore.SpawnFailed:
            pass

    threads = [threading.Thread(target=work, args=[f"web{index}"]) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(started), len(refused)) == (2, 4)
    with pytest.raises(hvcore.SpawnFailed):
        driver.start_instance({"name": "last"})
