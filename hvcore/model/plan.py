"""What a start would do, touching nothing."""

from __future__ import annotations

import shlex

import attrs


@attrs.frozen(kw_only=True)
class PlannedOption:
    """One option of the hypervisor's command line.

    Attributes:
        words: the option as argument words.
        origin: what in the definition it comes from, for example ``disks[0]``; ``driver`` for what is always there.
    """

    words: tuple[str, ...]
    origin: str


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
    """

    name: str
    program: str
    options: tuple[PlannedOption, ...]
    environment: tuple[tuple[str, str], ...] = ()
    fds: tuple[PlannedFd, ...] = ()
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole argument list, the program first."""
        return (self.program, *(word for option in self.options for word in option.words))

    def shell(self) -> str:
        """The command line for reading, quoted for a shell, one option a line."""
        lines = [shlex.join(option.words) for option in self.options]
        return " \\\n    ".join([shlex.quote(self.program), *lines])
