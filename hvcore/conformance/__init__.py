"""The conformance suite: whether a driver keeps the contract.

The checks are plain functions on a driver (`CHECKS`); ``hvcore.conformance.suite`` collects them for pytest, and
``hv conformance NAME`` runs that. A driver offers a `ConformanceProfile` to be tested with.
"""

from __future__ import annotations

from hvcore.conformance.check import Check, check
from hvcore.conformance.failure import ConformanceFailure, expect, expect_equal, expect_error
from hvcore.conformance.profile import ConformanceProfile, load_profile
from hvcore.conformance.subject import Subject

__all__ = [
    "Check",
    "ConformanceFailure",
    "ConformanceProfile",
    "Subject",
    "check",
    "expect",
    "expect_equal",
    "expect_error",
    "load_profile",
]
