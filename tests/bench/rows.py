"""What is measured, as rows of one table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Row:
    """One measurement beside what it is compared with, from the same run.

    Attributes:
        name: what was measured.
        unit: unit of ``value`` and ``reference``.
        value: median of ours.
        reference: median of what it is compared with; ``None`` when it stands alone.
        lowest: least of ours: what it takes when nothing else runs on the host.
        lowest_reference: least of the other.
        spread: quartiles of the ratios of the two in each turn.
        against: what it is compared with.
        samples: number of samples behind the medians.
        budget: what the design allows, in words.
    """

    name: str
    unit: str
    value: float
    reference: float | None = None
    lowest: float | None = None
    lowest_reference: float | None = None
    spread: tuple[float, float] | None = None
    against: str = ""
    samples: int = 1
    budget: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by the other."""
        return self.value / self.reference if self.reference else None

    @property
    def lowest_ratio(self) -> float | None:
        """The least of ours by the least of the other."""
        return self.lowest / self.lowest_reference if self.lowest and self.lowest_reference else None

    def as_dict(self) -> dict[str, object]:
        """The row as plain data."""
        return {**attrs.asdict(self), "ratio": self.ratio, "lowest_ratio": self.lowest_ratio}


def side_by_side(ours: Callable[[], Sequence[float]], other: Callable[[], Sequence[float]], count: int) -> list[Pair]:
    """Measure two things in turns, so that whatever disturbs the host disturbs both.

    Args:
        ours: does it once and returns how long each of its stages took, in seconds.
        other: the same, with as many stages.
        count: how often.

    Returns:
        What was found of each stage.
    """
    ours(), other()  # caches are warm, as they are in a host application that lives
    mine: list[Sequence[float]] = []
    others: list[Sequence[float]] = []
    for turn in range(count):
        pair = [(ours, mine), (other, others)]
        for measure, found in pair if turn % 2 else reversed(pair):
            found.append(measure())
    return [
        Pair(
            ours=statistics.median(a),
            other=statistics.median(b),
            lowest_ours=min(a),
            lowest_other=min(b),
            spread=_quartiles([x / y for x, y in zip(a, b, strict=True)]),
        )
        for a, b in zip(zip(*mine, strict=True), zip(*others, strict=True), strict=True)
    ]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


@attrs.frozen(kw_only=True)
class Pair:
    """Medians and least values of two measurements, in seconds, and how far their ratio goes apart."""

    ours: float
    other: float
    lowest_ours: float
    lowest_other: float
    spread: tuple[float, float]

    def scaled(self, factor: float) -> dict[str, Any]:
        """The values of a `Row` in another unit."""
        return {
            "value": self.ours * factor,
            "reference": self.other * factor,
            "lowest": self.lowest_ours * factor,
            "lowest_reference": self.lowest_other * factor,
            "spread": self.spread,
        }

    def excess(self, factor: float) -> dict[str, Any]:
        """The values of a `Row` that says how much more ours takes."""
        return {
            "value": (self.ours - self.other) * factor,
            "lowest": (self.lowest_ours - self.lowest_other) * factor,
        }


def table(rows: Iterable[Row]) -> str:
    """The rows for people."""
    cells: list[tuple[str, ...]] = [
        (
            "measured",
            "ours",
            "lowest",
            "other",
            "ratio",
            "quartiles",
            "of lowest",
            "unit",
            "n",
            "compared with",
            "budget",
        )
    ]
    for row in rows:
        numbers = (row.value, row.lowest, row.reference)
        shown = ["" if number is None else f"{number:.3f}" for number in numbers]
        ratio, of_lowest = ("" if ratio is None else f"{ratio:.2f}" for ratio in (row.ratio, row.lowest_ratio))
        spread = "" if row.spread is None else "{:.2f} {:.2f}".format(*row.spread)
        cells.append((row.name, *shown, ratio, spread, of_lowest, row.unit, str(row.samples), row.against, row.budget))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    right = (1, 2, 3, 4, 5, 6, 8)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
