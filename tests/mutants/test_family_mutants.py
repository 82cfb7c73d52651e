"""The checks of families are proved: every faulty plugin is failed by those of the sentence it breaks."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from breaking_families import MUTANTS, failures
from catalogue_families import INTERFACES, MARKS, KeepsRootsGroup, Mode, Model, StopLeavesAnInterface, Type, ip

from hvcore.conformance.contract import requirements
from hvcore_kvm.conformance import traces

pytestmark = pytest.mark.qemu

SOUND = {"NicMode": Mode, "SecurityModel": Model, "ConsoleType": Type}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def marks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place for what mutants leave; it goes with the test, and so do their processes and interfaces."""
    monkeypatch.setattr(traces, "PATIENCE", 1.0)
    monkeypatch.setattr(traces, "_INTERFACE_PATIENCE", 0.5)
    before = set(traces._children())
    Path(MARKS).mkdir()
    yield
    shutil.rmtree(MARKS)
    for name in os.listdir("/sys/class/net"):
        if name.startswith(INTERFACES):
            ip("link", "del", name)
    for pid in set(traces._children()) - before:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("requirement", "mutant"), MUTANTS, ids=[f"{requirement}-{mutant.__name__}" for requirement, mutant in MUTANTS]
)
def test_the_checks_of_a_sentence_fail_what_breaks_it(requirement: str, mutant: type, cache: str) -> None:
    """A faulty plugin is failed, for the sentence that it breaks."""
    if mutant is KeepsRootsGroup and os.geteuid() != 0:
        pytest.skip("only root can give QEMU another user")
    if mutant is StopLeavesAnInterface and (os.geteuid() != 0 or not os.path.exists("/dev/net/tun")):
        pytest.skip("only root makes taps")
    found = failures(mutant, requirement, cache)
    assert found, f"no check of {requirement} notices"
    assert {failure.requirement for failure in found} == {requirement}


@pytest.mark.parametrize("record", SOUND)
def test_the_checks_pass_what_keeps_the_sentences(record: str, cache: str) -> None:
    """They find nothing wrong with the plugins that the mutants are made of."""
    assert [str(failure) for failure in failures(SOUND[record], "", cache)] == []
    assert list(Path(MARKS).iterdir()) == []


def test_every_sentence_about_families_has_a_mutant() -> None:
    """None is checked by something that nobody has seen fail."""
    bound = {r.id for r in requirements() for record in SOUND if r.binds(record)}
    assert {requirement for requirement, _ in MUTANTS} == bound
