"""What a start would do, touching nothing."""

from __future__ import annotations

import shlex
from typing import Any, Literal

import attrs


@attrs.frozen(kw_only=True)
class PlannedOption:
    """One option of the hypervisor's command line.

    Attributes:
        words: the option as argument words.
        origin: what in the definition it comes from, for example ``disks[0]``; ``driver`` for what is always there.
        name: the option without its hyphens; empty where the driver does not say.
        value: its value as plain data: nothing, text, a list of words, or a table.
    """

    words: tuple[str, ...]
    origin: str
    name: str = ""
    value: Any = None


@attrs.frozen(kw_only=True)
class PlannedFd:
    """One file descriptor the hypervisor process inherits.

    Attributes:
        number: its number in that process.
        name: what it is called in messages.
        purpose: what it is and how it is opened.
    """

    number: int
    name: str
    purpose: str


@attrs.frozen(kw_only=True)
class PlannedChange:
    """One difference between a definition and the instance that runs.

    Attributes:
        path: where it is in the definition, for example ``disks[0].params.throttle``.
        before: what the instance runs with, as plain data; ``None`` for nothing.
        after: what the definition says, as plain data; ``None`` for nothing.
        effect: when it could take effect: ``live``, by ``hotplug``, or at the next ``start``.
        device: uuid of the disk or NIC it is about; ``None`` for the instance as a whole.
    """

    path: str
    before: Any
    after: Any
    effect: Literal["live", "hotplug", "start"]
    device: str | None = None


@attrs.frozen(kw_only=True)
class Plan:
    """What `start_instance` would run.

    Attributes:
        name: name of the instance.
        program: path of the program that would be executed.
        options: its command line, option by option.
        environment: its whole environment, as pairs.
        fds: file descriptors it would inherit, besides standard input, output and error.
        steps: what would be done on the host, in order.
        notes: what was decided and why, for people: machine type, accelerator.
        changes: what is different from the instance that runs; ``None`` when none does.
    """

    name: str
    program: str
    options: tuple[PlannedOption, ...]
    environment: tuple[tuple[str, str], ...] = ()
    fds: tuple[PlannedFd, ...] = ()
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    changes: tuple[PlannedChange, ...] | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole argument list, the program first."""
        return (self.program, *(word for option in self.options for word in option.words))

    def shell(self) -> str:
        """The command line for reading, quoted for a shell, one option a line."""
        lines = [shlex.join(option.words) for option in self.options]
        return " \\\n    ".join([shlex.quote(self.program), *lines])
