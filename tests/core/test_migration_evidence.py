"""What follows from what both sides of a migration show."""

from __future__ import annotations

import itertools

import pytest

from hvcore.migration_evidence import Evidence, Side, Verdict, verdict

SOURCES = (Side.RUNS, Side.MOVING, Side.LEFT, Side.GONE, Side.UNKNOWN)
DESTINATIONS = (Side.RUNS, Side.INCOMPLETE, Side.ARRIVED, Side.GONE, Side.UNKNOWN)
EVERYTHING = [
    (Evidence(source=source, destination=destination), patient)
    for source, destination in itertools.product(SOURCES, DESTINATIONS)
    for patient in (True, False)
]


@pytest.mark.parametrize(("seen", "patient"), EVERYTHING)
def test_the_destination_runs_it_only_when_the_source_cannot(seen: Evidence, patient: bool) -> None:
    """Whatever the destination shows, and however long it has taken."""
    found = verdict(seen, patient=patient)
    if found is Verdict.ARRIVED:
        assert seen.source in (Side.LEFT, Side.GONE)
        assert seen.destination in (Side.ARRIVED, Side.RUNS)
    if found is Verdict.STAYED:
        assert seen.source is Side.RUNS
        assert seen.destination is not Side.RUNS
    if found is Verdict.LOST:
        assert (seen.source, seen.destination) in ((Side.GONE, Side.GONE), (Side.GONE, Side.INCOMPLETE))


@pytest.mark.parametrize(("seen", "patient"), EVERYTHING)
def test_without_patience_there_is_an_answer(seen: Evidence, patient: bool) -> None:
    """Waiting ends; and whatever is unknown is said in words with something to do."""
    found = verdict(seen, patient=False)
    assert found is not Verdict.WAIT
    assert seen.source_words
    assert seen.destination_words
    assert seen.advice


@pytest.mark.parametrize(
    ("source", "destination", "found"),
    [
        (Side.RUNS, Side.UNKNOWN, Verdict.STAYED),
        (Side.RUNS, Side.ARRIVED, Verdict.STAYED),
        (Side.LEFT, Side.ARRIVED, Verdict.ARRIVED),
        (Side.LEFT, Side.GONE, Verdict.UNKNOWN),
        (Side.LEFT, Side.UNKNOWN, Verdict.WAIT),
        (Side.GONE, Side.ARRIVED, Verdict.ARRIVED),
        (Side.GONE, Side.INCOMPLETE, Verdict.WAIT),
        (Side.UNKNOWN, Side.ARRIVED, Verdict.WAIT),
        (Side.MOVING, Side.ARRIVED, Verdict.WAIT),
    ],
)
def test_verdicts(source: Side, destination: Side, found: Verdict) -> None:
    """The cases that matter most, one by one."""
    assert verdict(Evidence(source=source, destination=destination)) is found
