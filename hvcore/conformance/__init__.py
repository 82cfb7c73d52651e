"""The conformance suite: whether a driver keeps the contract.

The checks are plain functions on a driver (`CHECKS`); ``hvcore.conformance.suite`` collects them for pytest, and
``hv conformance NAME`` runs that. A driver offers a `ConformanceProfile` to be tested with.
"""

from __future__ import annotations

from hvcore.conformance.check import Check, check, checks_of
from hvcore.conformance.failure import ConformanceFailure, expect, expect_equal, expect_error
from hvcore.conformance.family import FamilySuite
from hvcore.conformance.interruption import count_cuts, kill_at, spread
from hvcore.conformance.profile import ConformanceProfile, load_profile
from hvcore.conformance.run import run_suite
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.conformance.watching import CHANGES, LOOKS, PROCESSES, SOCKETS, actions, watching

__all__ = [
    "CHANGES",
    "LOOKS",
    "PATIENCE",
    "PROCESSES",
    "SOCKETS",
    "Check",
    "ConformanceFailure",
    "ConformanceProfile",
    "FamilySuite",
    "Subject",
    "actions",
    "check",
    "checks_of",
    "count_cuts",
    "expect",
    "expect_equal",
    "expect_error",
    "kill_at",
    "load_profile",
    "run_suite",
    "spread",
    "watching",
]
