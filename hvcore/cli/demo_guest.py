"""The guests of ``hv demo``: what each is started with, how it says that it is ready, and how to talk to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from hvcore import guests
from hvcore.cli.serial_line import GuestSilent, SerialLine

_READY_SECONDS = 60.0
_ANSWER_SECONDS = 20.0
_NUDGE_SECONDS = 3.0


@attrs.frozen(kw_only=True)
class DemoGuest:
    """One guest.

    Attributes:
        title: what it is, for people.
        memory: what it needs.
        params: parameters of the driver that boot it.
        ready: what it says when it is up.
        prompt: what it says when it waits for input; empty when it has no shell.
        probe: what is typed to find out whether it lives.
        alive: what it says then.
        question: what is typed to hear something of it.
        answer: what its answer ends with.
    """

    title: str
    memory: str
    params: Mapping[str, Any]
    ready: bytes
    prompt: bytes
    probe: bytes
    alive: bytes
    question: bytes
    answer: bytes

    def definition(self, name: str) -> dict[str, Any]:
        """An instance that runs it, as an instance file would hold it."""
        return {
            "name": name,
            "memory": self.memory,
            "vcpus": 1,
            "consoles": ["serial"],
            "nics": [{"mode": "user"}],
            "params": dict(self.params),
        }

    def wait_ready(self, line: SerialLine, *, from_start: bool) -> None:
        """Wait until it is up.

        Args:
            line: its serial line.
            from_start: nothing of what it said has been missed.

        Raises:
            GuestSilent: it is not, after a minute.
        """
        if from_start:
            line.until(self.ready, seconds=_READY_SECONDS)
            self._until_prompt(line)
            return
        # It may have been ready before we attached: then it answers.
        wanted = self.prompt or self.alive
        for _ in range(int(_READY_SECONDS / _NUDGE_SECONDS)):
            line.send(b"\n" if self.prompt else self.probe)
            try:
                line.until(wanted, seconds=_NUDGE_SECONDS)
            except GuestSilent:
                continue
            return
        raise GuestSilent(f"the guest was not ready within {_READY_SECONDS:g} s")

    def ask(self, line: SerialLine) -> None:
        """Ask it something and wait for the answer.

        Raises:
            GuestSilent: there was none.
        """
        line.send(self.question)
        line.until(self.answer, seconds=_ANSWER_SECONDS)
        self._until_prompt(line)

    def hear(self, line: SerialLine) -> None:
        """Wait for the answer to the probe.

        Raises:
            GuestSilent: there was none.
        """
        line.until(self.alive, seconds=_ANSWER_SECONDS)
        self._until_prompt(line)

    def _until_prompt(self, line: SerialLine) -> None:
        if self.prompt:
            line.until(self.prompt, seconds=_ANSWER_SECONDS)


def linux_guest(cache: str, progress: Callable[[str], None]) -> DemoGuest:
    """The Linux guest, built in a directory or taken from there.

    Raises:
        GuestBuildError: it cannot be built here.
    """
    built = guests.build_linux_guest(Path(cache) / "linux", progress=progress)
    return DemoGuest(
        title=f"Linux {built.version} with a shell",
        memory="128MiB",
        params={
            "kernel": str(built.kernel),
            "initrd": str(built.initrd),
            # A few of the kernel's own words, to have something to watch.
            "cmdline": f"{guests.LINUX_COMMAND_LINE} loglevel=6",
        },
        ready=guests.LINUX_READY_MARKER,
        prompt=guests.LINUX_PROMPT,
        probe=b"echo awake\n",
        alive=b"\nawake",
        question=b"uname -a; uptime\n",
        answer=b"load average",
    )


def firmware_guest(directory: str) -> DemoGuest:
    """The firmware guest, written to a directory; it needs nothing from anywhere."""
    image = guests.write_firmware(os.path.join(directory, "firmware.rom"))
    return DemoGuest(
        title="hvcore's own 64 KiB firmware guest",
        memory="64MiB",
        params={"machine": "pc", "firmware_image": str(image)},
        ready=guests.FIRMWARE_READY_MARKER,
        prompt=b"",
        probe=b"e",
        alive=b"ok\r\n",
        question=b"c",
        answer=b"\r\n",
    )


def modelled_guest() -> DemoGuest:
    """What the fake driver runs: a model, without anything to boot."""
    return DemoGuest(
        title="a modelled guest",
        memory="128MiB",
        params={},
        ready=b"",
        prompt=b"",
        probe=b"",
        alive=b"",
        question=b"",
        answer=b"",
    )
