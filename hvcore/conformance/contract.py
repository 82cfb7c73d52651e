"""The sentences of the contract, as shipped: ``contract.json`` is made from ``docs/contract.md``; a test compares."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator

import attrs

from hvcore.capabilities import DriverDescription
from hvcore.hookspecs.table import OPERATION

FAMILY = "FA"
"""Kind of the sentences that bind plugins of a driver's families, and no driver."""

_SENTENCE = re.compile(r"^- \*\*(?P<id>\w\w-\d\d)\*\* \((?P<about>[^)]*)\) (?P<text>.*)$", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Requirement:
    """One sentence of the contract.

    Attributes:
        id: its id, for example ``LC-01``.
        operations: the operations it is about; empty for all. For a sentence about plugins of a family, the records
            that they yield.
        text: the sentence.
    """

    id: str
    operations: tuple[str, ...]
    text: str

    def binds(self, record: str) -> bool:
        """It binds a plugin that yields such a record, or a driver if there is none."""
        return record in self.operations if self.id.startswith(f"{FAMILY}-") else not record

    def applies(self, description: DriverDescription) -> bool:
        """It binds a driver: it is about an operation that the driver offers, or about all."""
        named = [OPERATION[name] for name in self.operations if name in OPERATION]
        return not named or any(
            operation.capability is None or description.claim(operation.capability).offered for operation in named
        )


def read_contract(text: str) -> tuple[Requirement, ...]:
    """The sentences of a contract page."""
    return tuple(
        Requirement(id=found["id"], operations=tuple(re.findall(r"`(\w+)`", found["about"])), text=found["text"])
        for found in _SENTENCE.finditer(text)
    )


def as_json(requirements: tuple[Requirement, ...]) -> str:
    """The text of ``contract.json``."""
    return json.dumps([attrs.asdict(requirement) for requirement in requirements], indent=1) + "\n"


@functools.cache
def requirements() -> tuple[Requirement, ...]:
    """Every sentence, in the order of the contract."""
    return tuple(_shipped())


def _shipped() -> Iterator[Requirement]:
    text = importlib.resources.files("hvcore.conformance").joinpath("contract.json").read_text(encoding="utf-8")
    for entry in json.loads(text):
        yield Requirement(id=entry["id"], operations=tuple(entry["operations"]), text=entry["text"])
