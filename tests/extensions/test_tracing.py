"""Tracing: a span for every operation, nested, whatever becomes of the operation or of the emitter."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Span, Tracing, current_span

Load = Callable[..., hvcore.Driver]


def test_a_span_for_every_operation(load: Load) -> None:
    """It has the identifiers of W3C Trace Context, times, and how it ended."""
    spans: list[Span] = []
    answers: dict[str, Any] = {"list_instances": hvcore.HostError("no", code="own")}
    driver = load(Tracing(spans.append), answers=answers)
    driver.stop_instance("web1")
    with pytest.raises(hvcore.HostError):
        driver.list_instances()
    stop, listing = spans
    assert (stop.name, stop.driver, stop.instance, stop.outcome) == ("stop_instance", "told", "web1", "done")
    assert (listing.outcome, listing.code, listing.error) == ("refused", "own", "no")
    assert re.fullmatch("[0-9a-f]{32}", stop.trace_id)
    assert re.fullmatch("[0-9a-f]{16}", stop.span_id)
    assert stop.trace_id != listing.trace_id
    assert stop.parent_id is None
    assert stop.duration > 0
    assert stop.start <= listing.start


def test_spans_nest(load: Load) -> None:
    """What happens within an operation, or within the host application's own span, has it as parent."""
    spans: list[Span] = []
    tracing = Tracing(spans.append)
    inner = load(tracing, name="inner")

    def nested() -> Any:
        inner.list_instances()
        return hvcore.Transition(name="web1", before=None, after=None, changed=True)

    outer = load(tracing, answers={"stop_instance": nested}, name="outer")
    with tracing.span("drain"):
        assert current_span() is not None
        outer.stop_instance("web1")
    assert current_span() is None
    listing, stop, drain = spans
    assert [span.name for span in spans] == ["list_instances", "stop_instance", "drain"]
    assert {span.trace_id for span in spans} == {drain.trace_id}
    assert (listing.parent_id, stop.parent_id, drain.parent_id) == (stop.span_id, drain.span_id, None)
    assert (drain.driver, drain.instance) == (None, None)


def test_a_failed_stretch_of_the_host_application(load: Load) -> None:
    """A span ends with the exception that left it."""
    spans: list[Span] = []
    with pytest.raises(KeyError), Tracing(spans.append).span("drain"):
        raise KeyError("x")
    assert (spans[0].outcome, spans[0].code, spans[0].error) == ("failed", None, "KeyError: 'x'")


def test_threads_have_spans_of_their_own(load: Load) -> None:
    """An operation in another thread is no part of what goes on here."""
    spans: list[Span] = []
    tracing = Tracing(spans.append)
    driver = load(tracing)
    with tracing.span("here"):
        thread = threading.Thread(target=driver.list_instances)
        thread.start()
        thread.join()
    there, here = spans
    assert there.parent_id is None
    assert there.trace_id != here.trace_id


def test_a_hung_operation_shows(load: Load) -> None:
    """A span that has not ended can be seen, with its age."""
    spans: list[Span] = []
    tracing, entered, release = Tracing(spans.append), threading.Event(), threading.Event()

    def hang() -> Any:
        entered.set()
        release.wait(30)
        return hvcore.InstanceListing(instances=())

    thread = threading.Thread(target=load(tracing, answers={"list_instances": hang}).list_instances)
    thread.start()
    assert entered.wait(30)
    (found,) = tracing.unfinished()
    assert (found.name, found.outcome) == ("list_instances", "open")
    assert tracing.unfinished()[0].duration > found.duration
    release.set()
    thread.join()
    assert tracing.unfinished() == ()
    assert spans[0].span_id == found.span_id


def test_an_emitter_that_fails_touches_no_operation(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    """Its exception is logged."""

    def emit(span: Span) -> None:
        raise ZeroDivisionError("collector down")

    with caplog.at_level(logging.ERROR):
        assert load(Tracing(emit)).stop_instance("web1").changed
    assert "collector down" in caplog.text


def test_without_an_emitter_spans_are_logged(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    """At level INFO."""
    with caplog.at_level(logging.INFO, logger="hvcore.extensions.tracing"):
        load(Tracing()).stop_instance("web1")
    assert "told stop_instance web1: done" in caplog.text
