"""`Tracing`: a span for every operation, nested, with the identifiers of W3C Trace Context."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import random
import time
from collections.abc import Callable, Generator, Iterator

import attrs

from hvcore.errors import HypervisorError
from hvcore.hookspecs.markers import hookimpl
from hvcore.operation import OperationCall

_log = logging.getLogger(__name__)

_CURRENT: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("hvcore_span", default=None)
"""Trace and span that surround what is done now, in this thread or task."""

_Begun = tuple[str, str | None, str | None, str, str, str | None, float, float]
"""A span that has begun: name, driver, instance, trace, span, parent, and when, on the wall and for the duration. A
tuple, because every operation makes one."""


@attrs.frozen(kw_only=True)
class Span:
    """One operation, or a stretch of the host application's own work.

    Attributes:
        name: name of the operation, or what the host application called it.
        trace_id: what belongs together; 32 hexadecimal digits.
        span_id: this span; 16 hexadecimal digits.
        parent_id: the span around it; ``None`` for the outermost.
        driver: name of the driver; ``None`` for the host application's own.
        instance: name of the instance.
        start: when it began, in seconds since the epoch.
        duration: how long it took, in seconds; so far, for one that has not come back.
        outcome: ``done``, an `HypervisorError.outcome`, ``failed``, or ``open`` for one that has not come back.
        code: error code.
        error: the error in words.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    driver: str | None
    instance: str | None
    start: float
    duration: float
    outcome: str = "done"
    code: str | None = None
    error: str | None = None


class Tracing:
    """Hands a `Span` to a callable at the end of every operation.

    Args:
        emit: takes the span, in the thread of the operation. What it raises is logged and does not touch the
            operation. When not given, spans are logged (logger ``hvcore.extensions.tracing``, level INFO).
    """

    def __init__(self, emit: Callable[[Span], object] | None = None) -> None:
        self._emit = emit or _log_span
        self._open: dict[str, _Begun] = {}

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Generator[None, object, object]:
        """Trace one operation."""
        begun = self._begin(call.name, call.driver, call.instance)
        token = _CURRENT.set((begun[3], begun[4]))
        try:
            result = yield
        except BaseException as error:
            self._end(begun, token, error)
            raise
        self._end(begun, token, None)
        return result

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Put the operations of a stretch of the host application's own work into one span."""
        begun = self._begin(name, None, None)
        token = _CURRENT.set((begun[3], begun[4]))
        try:
            yield
        except BaseException as error:
            self._end(begun, token, error)
            raise
        self._end(begun, token, None)

    def unfinished(self) -> tuple[Span, ...]:
        """The spans that have not come back, the oldest first; a hung operation shows here."""
        return tuple(_span(begun, "open") for begun in sorted(self._open.copy().values(), key=lambda begun: begun[7]))

    def _begin(self, name: str, driver: str | None, instance: str | None) -> _Begun:
        around = _CURRENT.get()
        # Not secrets: they only have to differ. The generator is seeded anew in the child of a fork.
        if around is None:
            digits = f"{random.getrandbits(192):048x}"
            trace_id, span_id, parent_id = digits[:32], digits[32:], None
        else:
            trace_id, parent_id = around
            span_id = f"{random.getrandbits(64):016x}"
        begun = (name, driver, instance, trace_id, span_id, parent_id, time.time(), time.perf_counter())
        self._open[span_id] = begun
        return begun

    def _end(
        self, begun: _Begun, token: contextvars.Token[tuple[str, str] | None], failure: BaseException | None
    ) -> None:
        _CURRENT.reset(token)
        del self._open[begun[4]]
        if failure is None:
            span = _span(begun, "done")
        elif isinstance(failure, HypervisorError):
            span = _span(begun, failure.outcome, failure.code, failure.message)
        else:
            span = _span(begun, "failed", None, f"{type(failure).__name__}: {failure}")
        try:
            self._emit(span)
        except Exception:
            _log.exception("a span of %s could not be emitted", span.name)


def current_span() -> tuple[str, str] | None:
    """Trace and span id of the innermost span around the caller, for what is logged or sent elsewhere."""
    return _CURRENT.get()


def _span(begun: _Begun, outcome: str, code: str | None = None, error: str | None = None) -> Span:
    name, driver, instance, trace_id, span_id, parent_id, start, clock = begun
    return Span(
        name=name,
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        driver=driver,
        instance=instance,
        start=start,
        duration=time.perf_counter() - clock,
        outcome=outcome,
        code=code,
        error=error,
    )


def _log_span(span: Span) -> None:
    _log.info(
        "%s %s %s: %s in %.6f s (trace %s, span %s, parent %s)",
        span.driver or "host application",
        span.name,
        span.instance or "",
        span.code or span.outcome,
        span.duration,
        span.trace_id,
        span.span_id,
        span.parent_id or "none",
    )
