"""The conformance profile of driver fake: everything can be provoked, for the hypervisor is a model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import (
    ConformanceProfile,
    Disk,
    Driver,
    EarlyMigration,
    EncryptedDisk,
    FailingTarget,
    Instance,
    LiveParameter,
    MigrationTarget,
    PasswordConsole,
    Size,
)
from hvcore_fake.account import record_key
from hvcore_fake.console_client import ModelledClient
from hvcore_fake.images import BLOCK, read_disk
from hvcore_fake.link import write_taken
from hvcore_fake.plugging import NEWEST_QCOW2
from hvcore_fake.sealed import key_of, seal
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
        unstartable=lambda name, directory: _definition(name, directory, disks=[_unreadable(directory)[0]]),
        unwilling=lambda name, directory: _definition(name, directory, params={"unplug": "ignore", "balloon_rate": 0}),
        lets_go=lambda driver, name: World.of(driver).guest_lets_go(name),
        holds=_holds,
        unreadable=_unreadable,
        live=LiveParameter(name="shutdown_time", value=7.0, read=_shutdown_time),
        attach=ModelledClient,
        password=_password,
        identity=_identity,
        impostor=_impostor,
        host_restarts=_host_restarts,
        guest_writes=_guest_writes,
        failing_target=_failing_target,
        migration={"tls": False},
        intruder=_intruder,
        encrypted=_encrypted,
        postcopy=EarlyMigration(
            definition=lambda name, directory: _definition(name, directory),
            policy={"tls": False, "downtime_limit": "1ms", "postcopy": {"after_passes": 1}},
            make_busy=_make_busy,
        ),
        absent={"argv": "a modelled process has no argument list"},
    )


def _definition(name: str, directory: str, **more: Any) -> Instance:
    return Instance(name=name, memory=Size(64 << 20), **more)


def _unreadable(directory: str) -> tuple[Disk, str]:
    path, version = os.path.join(directory, "newer.qcow2"), NEWEST_QCOW2 + 1
    with open(path, "wb") as file:
        file.write(b"QFI\xfb" + version.to_bytes(4, "big") + bytes(512))
    return Disk(path=path, format="qcow2"), f"Unsupported qcow2 version {version} of {path}"


def _password(name: str, directory: str) -> PasswordConsole:
    secret = "Hvc0nf!0"  # noqa: S105 - of nothing
    params = {"console_password": secret}
    instance = _definition(name, directory, consoles=("serial", "vnc"), params=params)
    return PasswordConsole(instance=instance, kind="vnc", secret=secret)


def _holds(driver: Driver, name: str, path: str) -> bool:
    process = World.of(driver).process(name)
    return process is not None and path in {backend.source for backend in process.backends}


def _shutdown_time(driver: Driver, name: str) -> object:
    process = World.of(driver).process(name)
    return None if process is None else process.behaviour.shutdown_time


def _identity(driver: Driver, name: str) -> frozenset[str]:
    process = World.of(driver).process(name)
    return frozenset() if process is None else frozenset(process.shown)


def _host_restarts(driver: Driver, name: str) -> None:
    del name
    World.of(driver).host_restarts()


def _make_busy(driver: Driver, name: str) -> None:
    world = World.of(driver)
    with world.store.locked():
        process = world.process(name)
        if process is not None:
            world.behave(name, attrs.evolve(process.behaviour, dirty_rate=Size(4 << 30)))


def _guest_writes(driver: Driver, name: str, uuid: str, offset: int, count: int, value: int) -> None:
    World.of(driver).guest_writes(name, uuid, offset, bytes([value]) * count)


@contextlib.contextmanager
def _intruder(target: MigrationTarget, uuid: str) -> Iterator[Callable[[int, bytes], bool]]:
    yield lambda offset, data: write_taken(target.address, uuid, offset, data)


def _encrypted(directory: str, content: bytes, secret: bytes) -> EncryptedDisk:
    path, secret_file = (os.path.join(directory, name) for name in ("encrypted.raw", "secret"))
    with open(secret_file, "wb") as file:
        file.write(secret)
    with open(path, "wb") as file:
        blocks = {at // BLOCK: content[at : at + BLOCK] for at in range(0, len(content), BLOCK)}
        seal(file.fileno(), len(content), blocks, key_of(secret_file))

    def opens(secret: bytes) -> bytes | None:
        try:
            size, blocks = read_disk(path, "raw", hashlib.sha256(secret).hexdigest())
        except ValueError:
            return None
        return b"".join(blocks.get(at // BLOCK, b"").ljust(BLOCK, b"\0") for at in range(0, size, BLOCK))[:size]

    disk = Disk(path=path, format="raw", params={"encryption": True, "secret_file": secret_file})
    return EncryptedDisk(disk=disk, secret_file=secret_file, opens=opens)


@contextlib.contextmanager
def _failing_target(driver: Driver, directory: str, size: int) -> Iterator[FailingTarget]:
    """A directory that becomes full, or goes."""
    del size
    world = World.of(driver)
    path = os.path.join(directory, "failing")
    os.makedirs(path)
    try:
        yield FailingTarget(target=path, faults={"full": lambda: world.fill(path), "gone": lambda: os.rmdir(path)})
    finally:
        world.empty(path)
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _impostor(driver: Driver, name: str) -> Iterator[Callable[[], bool]]:
    """Another modelled process, of no instance, gets the process id."""
    world, other = World.of(driver), "somebody-else"
    process = world.process(name)
    with world.store.locked():
        world.kill(name)
        if process is not None:
            world.store.write(process_key(other), attrs.evolve(process, name=other))
    try:
        yield lambda: world.process(other) is not None
    finally:
        world.store.remove(process_key(other))


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
