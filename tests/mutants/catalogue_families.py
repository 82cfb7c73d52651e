"""Faulty NIC modes, security models and console types, each a few lines on top of a sound one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from typing import Any

import attrs
from breaking_families import breaks

from hvcore import Console, Finding, Instance, Nic, checks, param
from hvcore_kvm import (
    ConsoleContext,
    ConsolePlan,
    ConsoleType,
    EndpointContext,
    NicContext,
    NicMode,
    NicPlan,
    SecurityModel,
    SecurityPlan,
    Step,
    find_program,
    json_option,
    keyed,
    word,
)

MARKS = os.path.join(tempfile.gettempdir(), f"hvt-marks-{os.getpid()}")
"""Where mutants leave what they should not; the tests remove it."""

INTERFACES = f"hm{os.getpid() % 65536:x}"
"""How the names of interfaces begin that a mutant leaves; the tests remove those too."""


@attrs.frozen(kw_only=True)
class Parameters:
    text: str = param(default="a,b", summary="Some text.")


def put(name: str) -> None:
    os.close(os.open(os.path.join(MARKS, name), os.O_CREAT | os.O_WRONLY))


def take(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(MARKS, name))


def leave_a_process() -> None:
    """The tests end it."""
    subprocess.run(["/bin/sh", "-c", "sleep 600 > /dev/null 2>&1 &"], check=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Sound:
    kind: type
    name = "mutant"
    summary = "What the tests make of it."
    parameters: type | None = Parameters

    def check(self, thing: Any, parameters: Any) -> Iterable[Finding]:
        return ()

    def check_host(self, thing: Any, parameters: Any) -> Iterable[Finding]:
        return ()


class Mode(Sound):
    kind = NicMode

    def plan(self, context: NicContext) -> NicPlan:
        mark = f"nic-{context.nic.uuid}"
        up = Step(name="mark", do=lambda: put(mark), undo=lambda: take(mark))
        down = Step(name="unmark", do=lambda: take(mark))
        return NicPlan(netdev={"type": "user", "id": context.netdev_id}, up=(up,), down=(down,))


class Model(Sound):
    kind = SecurityModel

    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        mark = f"model-{instance.name}"
        return SecurityPlan(steps=(Step(name="mark", do=lambda: put(mark), undo=lambda: take(mark)),))


class Type(Sound):
    kind = ConsoleType

    def plan(self, context: ConsoleContext) -> ConsolePlan:
        chardev = {"id": "mutant0", "fd": context.listen("mutant"), "server": True, "wait": False}
        device = {"driver": "isa-debugcon", "id": "mutantport", "iobase": 0x402, "chardev": "mutant0"}
        return ConsolePlan(
            options=(
                keyed("chardev", "socket", chardev, origin="consoles"),
                json_option("device", device, origin="consoles"),
            )
        )

    def endpoint(self, context: EndpointContext) -> Console:
        return Console(instance=context.name, kind="mutant", socket_path=context.socket_path("mutant"))


@breaks("FA-01")
class NamedLikeAParameterOfTheDriver(Model):
    name = "machine"


@breaks("FA-01")
class SummaryIsNoSentence(Mode):
    summary = "mutant mode"


@breaks("FA-02")
class DefaultIsRefused(Type):
    @attrs.frozen(kw_only=True)
    class parameters:
        port: int = param(default=1, checks=(checks.between(2, 9),), summary="A port.")


@breaks("FA-02")
class ParameterWithoutSummary(Mode):
    @attrs.frozen(kw_only=True)
    class parameters:
        port: int = param(default=1, summary="")


@breaks("FA-03")
class CheckRaisesWithoutAComma(Mode):
    def check(self, nic: Nic, parameters: Parameters) -> Iterable[Finding]:
        _ = parameters.text.split(",")[1]
        return ()


@breaks("FA-03")
class PlansWhatItIsGiven(Type):
    def plan(self, context: ConsoleContext) -> ConsolePlan:
        return ConsolePlan(options=(word("msg", context.parameters.text, origin="consoles"),))


@breaks("FA-04")
class CheckLooksAtTheHost(Mode):
    def check(self, nic: Nic, parameters: Parameters) -> Iterable[Finding]:
        os.listdir("/sys/class/net")
        return ()


@breaks("FA-05")
class HostCheckMakesADirectory(Model):
    def check_host(self, instance: Instance, parameters: Parameters) -> Iterable[Finding]:
        os.rmdir(tempfile.mkdtemp())
        return ()


@breaks("FA-05")
class HostCheckLeavesAProcess(Model):
    def check_host(self, instance: Instance, parameters: Parameters) -> Iterable[Finding]:
        leave_a_process()
        return ()


@breaks("FA-06")
class FirstPlanMakesADirectory(Mode):
    def __init__(self) -> None:
        self.planned = False

    def plan(self, context: NicContext) -> NicPlan:
        if not self.planned:
            os.rmdir(tempfile.mkdtemp(dir=MARKS))
        self.planned = True
        return super().plan(context)


@breaks("FA-06")
class PlanConnects(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        socket.socket(socket.AF_UNIX).close()
        return super().plan(context)


@breaks("FA-06")
class PlanWrites(Model):
    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        put("planned")
        return super().plan(instance, parameters)


@breaks("FA-07")
class PlanChanges(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        plan = super().plan(context)
        return attrs.evolve(plan, netdev={**plan.netdev, "hostname": f"guest{os.urandom(8).hex()}"})


@breaks("FA-08")
class QemuKnowsNoSuchBackend(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        return NicPlan(netdev={"type": "nonesuch", "id": context.netdev_id})


@breaks("FA-08")
class StopLeavesAFile(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        up = Step(name="mark", do=lambda: put(f"nic-{context.nic.uuid}"))
        return NicPlan(netdev={"type": "user", "id": context.netdev_id}, up=(up,))


@breaks("FA-08")
class StopLeavesAProcess(Model):
    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        return SecurityPlan(steps=(Step(name="begin", do=leave_a_process),))


@breaks("FA-08")
class StopLeavesAnInterface(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        name = f"{INTERFACES}{str(context.nic.uuid)[:8]}"
        up = Step(name="add", do=lambda: ip("tuntap", "add", name, "mode", "tap"))
        return NicPlan(netdev={"type": "user", "id": context.netdev_id}, up=(up,))


@breaks("FA-09")
class FailedStartIsNotUndone(Model):
    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        return SecurityPlan(steps=(Step(name="mark", do=lambda: put(f"model-{instance.name}")),))


@breaks("FA-10")
class UndoNeedsItsMemory(Model):
    def __init__(self) -> None:
        self.done: set[str] = set()

    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        mark = f"model-{instance.name}"

        def do() -> None:
            put(mark)
            self.done.add(mark)

        def undo() -> None:
            if mark in self.done:
                take(mark)
                self.done.remove(mark)

        return SecurityPlan(steps=(Step(name="mark", do=do, undo=undo),))


@breaks("FA-11")
class DownFailsTheSecondTime(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        mark = f"nic-{context.nic.uuid}"
        down = Step(name="unmark", do=lambda: os.unlink(os.path.join(MARKS, mark)))
        return attrs.evolve(super().plan(context), down=(down,))


@breaks("FA-12")
class UnpluggedItLeavesAFile(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        return attrs.evolve(super().plan(context), down=())


@breaks("FA-12")
class CannotBePlugged(Mode):
    def plan(self, context: NicContext) -> NicPlan:
        step = Step(name="count", do=lambda: [][1])
        return attrs.evolve(super().plan(context), up=(step,))


@breaks("FA-13")
class EndpointIsElsewhere(Type):
    def endpoint(self, context: EndpointContext) -> Console:
        return attrs.evolve(super().endpoint(context), socket_path=context.socket_path("elsewhere"))


@breaks("FA-13")
class EndpointIsOfAnotherKind(Type):
    def endpoint(self, context: EndpointContext) -> Console:
        return attrs.evolve(super().endpoint(context), kind="serial")


@breaks("FA-14")
class KeepsRootsGroup(Model):
    def plan(self, instance: Instance, parameters: Any) -> SecurityPlan:
        return SecurityPlan(launcher=(find_program("setpriv") or "setpriv", "--reuid=23456", "--clear-groups"))


@breaks("FA-15")
class AllowsNoDisk(Model):
    def check(self, instance: Instance, parameters: Any) -> Iterable[Finding]:
        if instance.disks:
            yield Finding(code="no-disks", path="disks", message="security model mutant has no disks")
