"""The command line of a directly booted kernel, as Ganeti puts it together, and taking it apart again."""

from __future__ import annotations

import re

import attrs

_SERIAL = re.compile(r"(?P<rest>.*) console=ttyS0,(?P<speed>[0-9]{1,7})", re.DOTALL)
_ROOT = re.compile(r"root=(?P<root>\S+)(?: (?P<rest>.*))?", re.DOTALL)


@attrs.frozen(kw_only=True)
class KernelCommandLine:
    """Its parts.

    Attributes:
        root: root device; ``None`` for none.
        arguments: what stands in the middle, verbatim.
        speed: speed of the serial console; ``None`` without one.
    """

    root: str | None
    arguments: str
    speed: int | None

    def __str__(self) -> str:
        parts = [f"root={self.root}"] if self.root else []
        parts.append(self.arguments)
        if self.speed is not None:
            parts.append(f"console=ttyS0,{self.speed}")
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str, *, serial: bool) -> KernelCommandLine:
        """Take it apart; what is not in Ganeti's form stays in ``arguments``.

        Args:
            text: the command line.
            serial: there is a serial console, so that a console at the end may be its.
        """
        speed = None
        found = _SERIAL.fullmatch(text) if serial else None
        if found is not None:
            text, speed = found["rest"], int(found["speed"])
        found = _ROOT.fullmatch(text)
        if found is None:
            return cls(root=None, arguments=text, speed=speed)
        return cls(root=found["root"], arguments=found["rest"] or "", speed=speed)
