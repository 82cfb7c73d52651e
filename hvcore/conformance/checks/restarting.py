"""Restarting: cold and by the reset button."""

from __future__ import annotations

from typing import Literal

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.errors import DeadlineExceeded, InvalidParameters
from hvcore.model.state import InstanceState
from hvcore.model.units import Size

_COLD: tuple[Literal["soft", "hard"], ...] = ("soft", "hard")


@check("LC-16", capabilities=[Capability.REBOOT, Capability.GRACEFUL_STOP])
def a_cold_restart_makes_a_new_process(subject: Subject) -> None:
    """In modes soft and hard the guest runs in a new process afterwards."""
    name = subject.start()
    for mode in _COLD:
        subject.wait_ready(name)
        before = subject.info(name).pid
        subject.driver.reboot_instance(name, mode=mode, timeout=PATIENCE)
        info = subject.info(name)
        expect_equal(info.state, InstanceState.RUNNING, f"the state after mode {mode}")
        expect(subject.lives(name), f"no process of it lives after mode {mode}")
        expect(info.pid != before, f"the process is the same after mode {mode}")


@check("LC-17", capabilities=[Capability.REBOOT, Capability.RESET])
def a_reset_keeps_the_process(subject: Subject) -> None:
    """In mode reset the process stays the same."""
    name = subject.start(ready=True)
    before = subject.info(name).pid
    subject.driver.reboot_instance(name, mode="reset")
    info = subject.info(name)
    expect_equal((info.pid, info.state), (before, InstanceState.RUNNING), "process and state after the reset")


@check("LC-18", capabilities=[Capability.REBOOT], needs=["deafen"])
def a_soft_restart_uses_no_force(subject: Subject) -> None:
    """A guest that does not power off in its time keeps running."""
    name = subject.start(deaf=True)
    before = subject.info(name).pid
    expect_error(
        DeadlineExceeded,
        lambda: subject.driver.reboot_instance(name, mode="soft", timeout=0.5),
        "the soft restart of a guest that heeds nothing",
    )
    expect(subject.lives(name), "its process is gone after the restart that failed")
    expect_equal(subject.info(name).pid, before, "its process after the restart that failed")


@check("LC-19", capabilities=[Capability.REBOOT])
def a_cold_start_takes_the_new_definition(subject: Subject) -> None:
    """A new definition is what runs after a cold restart."""
    definition = subject.definition()
    subject.driver.start_instance(definition)
    larger = attrs.evolve(definition, memory=Size(definition.memory * 2))
    subject.driver.reboot_instance(larger, mode="hard")
    expect_equal(subject.info(definition.name).memory_max, larger.memory, "its memory after the cold restart")


@check("LC-19", capabilities=[Capability.REBOOT, Capability.RESET])
def a_reset_ignores_the_new_definition(subject: Subject) -> None:
    """A new definition is ignored by the reset button."""
    definition = subject.definition()
    subject.driver.start_instance(definition)
    larger = attrs.evolve(definition, memory=Size(definition.memory * 2))
    subject.driver.reboot_instance(larger, mode="reset")
    expect_equal(subject.info(definition.name).memory_max, definition.memory, "its memory after the reset")


@check("LC-20", capabilities=[Capability.REBOOT])
def a_restart_that_cannot_succeed_is_refused_beforehand(subject: Subject) -> None:
    """A new definition that this host cannot run is refused while the old life goes on."""
    definition = subject.definition()
    subject.driver.start_instance(definition)
    before = subject.info(definition.name).pid
    broken = attrs.evolve(definition, disks=(subject.missing_disk(),))
    for mode in _COLD:
        expect_error(
            InvalidParameters,
            lambda mode=mode: subject.driver.reboot_instance(broken, mode=mode),  # type: ignore[misc]
            f"the restart in mode {mode} with a disk that is not there",
        )
        expect(subject.lives(definition.name), f"its process is gone after the refusal of mode {mode}")
        expect_equal(subject.info(definition.name).pid, before, f"its process after the refusal of mode {mode}")
