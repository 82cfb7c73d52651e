"""The conformance profile of driver fake: everything can be provoked, for the hypervisor is a model."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from hvcore import ConformanceProfile, Driver, Instance, Size
from hvcore_fake.account import record_key
from hvcore_fake.world import World, process_key


def profile(options: Mapping[str, str]) -> ConformanceProfile:
    """The profile; it has no options."""
    if options:
        raise ValueError(f"there is no option {', '.join(sorted(options))}")
    return ConformanceProfile(
        driver="fake",
        definition=_definition,
        lives=lambda driver, name: World.of(driver).process(name) is not None,
        resources=lambda driver: frozenset(f"process of {p.name}" for p in World.of(driver).processes()),
        guest_powers_off=lambda driver, name: World.of(driver).guest_powers_off(name),
        guest_panics=lambda driver, name: World.of(driver).guest_panics(name),
        kill=lambda driver, name: World.of(driver).kill(name),
        hang=lambda driver, name: World.of(driver).hang(name),
        answer_again=lambda driver, name: World.of(driver).answer_again(name),
        deafen=_deafen,
        damage_records=_damage_records,
        times_asked=_times_asked,
        restarts=lambda driver: World.of(driver).powercycles,
        migration={"tls": False},
        absent={
            "argv": "a modelled process has no argument list",
            "unstartable": "a modelled process does not end before it is ready, and prints nothing",
        },
    )


def _definition(name: str, directory: str) -> Instance:
    return Instance(name=name, memory=Size(64 << 20))


def _deafen(driver: Driver, name: str) -> None:
    world = World.of(driver)
    with world.store.locked():
        process = world.process(name)
        if process is not None:
            behaviour = attrs.evolve(process.behaviour, ignore_power_button=True)
            world.store.write(process_key(name), attrs.evolve(process, behaviour=behaviour))


def _damage_records(driver: Driver, name: str) -> None:
    with open(World.of(driver).store.path(record_key(name)), "wb") as file:
        file.write(b"\0 no record")


def _times_asked(driver: Driver, name: str) -> int:
    return sum(numbered.event.name == "POWERDOWN" for numbered in World.of(driver).events.of(name))
