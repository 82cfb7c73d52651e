"""The parts of the suite that need no driver: contract, matrix, verdict, watching, cuts."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hvcore.capabilities import DriverDescription
from hvcore.conformance import ConformanceFailure, check, expect_error
from hvcore.conformance.checks import CHECKS, TOPICS
from hvcore.conformance.contract import requirements
from hvcore.conformance.interruption import spread
from hvcore.conformance.verdict import CheckResult, judge
from hvcore.conformance.watching import CHANGES, actions
from hvcore.errors import NotRunning

ROOT = Path(__file__).resolve().parents[2]
NOBODY = DriverDescription(name="nobody", version="1", hook_api=1, summary="Claims nothing.")


def test_the_matrix_and_the_shipped_sentences_are_up_to_date() -> None:
    """Both are what the contract, the checks and the mutants say."""
    command = [sys.executable, "-m", "hvcore.conformance.matrix", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{done.stdout}run: python -m hvcore.conformance.matrix"


def test_every_check_is_about_a_sentence_and_says_what_must_hold() -> None:
    """Ids are those of the contract; names are unique within their topic; there is a docstring."""
    ids = {requirement.id for requirement in requirements()}
    assert {each.requirement for each in CHECKS} <= ids
    assert len({(each.topic, each.name) for each in CHECKS}) == len(CHECKS)
    assert all(each.summary.endswith(".") for each in CHECKS)


def test_every_topic_is_collected() -> None:
    """Each module of checks has its module of tests."""
    suite = ROOT / "hvcore/conformance/suite"
    assert {path.stem.removeprefix("test_") for path in suite.glob("test_*.py")} == {
        module.__name__.rpartition(".")[2] for module in TOPICS
    }


def test_a_check_cannot_need_what_no_profile_has() -> None:
    """A word that is spelled wrong would be a check that never runs."""
    with pytest.raises(ValueError, match="no hnag"):
        check("LC-01", needs=["hnag"])


def _verdict(*outcomes: str) -> str:
    return judge("nobody", NOBODY, [CheckResult(check="t.c", requirement="LC-01", outcome=o) for o in outcomes]).verdict


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        (["passed"], "conformant"),
        (["passed", "absent"], "conformant"),
        (["passed", "not-claimed"], "conformant"),
        (["passed", "not-probed"], "partial"),
        (["not-probed"], "partial"),
        (["passed", "failed"], "failed"),
        (["not-probed", "failed"], "failed"),
        ([], "failed"),
        (["absent"], "failed"),
    ],
)
def test_verdicts(outcomes: list[str], verdict: str) -> None:
    """One failure is enough for failed, one check that could not run for partial, and nothing at all is no pass."""
    assert _verdict(*outcomes) == verdict


def test_sentences_about_what_is_not_claimed_do_not_bind() -> None:
    """A driver that claims nothing is not asked about migration, and is asked about starting."""
    rows = {row.requirement.id: row.status for row in judge("nobody", NOBODY, []).results}
    assert (rows["MI-01"], rows["LC-01"]) == ("not-claimed", "not-covered")


class _Page(HTMLParser):
    """The elements of a page, with what stands in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_holds_what_was_said_as_text(tmp_path: Path) -> None:
    """Every sentence is in it with its status; what a driver said is never markup; every element is closed."""
    hostile = "</pre><script>alert(1)</script>\udcff"
    result = CheckResult(check="t.c", requirement="LC-01", outcome="failed", message=hostile, duration=0.5)
    verdict = judge("nobody", NOBODY, [result], [hostile])
    verdict.write(str(tmp_path))
    text = (tmp_path / "verdict.html").read_text()
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.seen
    assert text.startswith("<!DOCTYPE html>")
    assert sum("<script>alert(1)</script>" in words for words in page.words) == 2
    assert {row.requirement.id for row in verdict.results} <= set(page.words)
    assert "failed" in page.words


def test_what_a_call_does_is_seen(tmp_path: Path) -> None:
    """Files that are made and written are seen, files that are read are not among the changes."""
    path = tmp_path / "file"

    def work() -> None:
        path.write_text("x")
        path.read_text()
        os.mkdir(tmp_path / "folder")

    seen = actions(CHANGES | {"open-write"}, work)
    assert seen == [f"open-write {path}", f"os.mkdir {tmp_path / 'folder'}"]


@pytest.mark.parametrize(("cuts", "most", "chosen"), [(0, 6, ()), (3, 6, (1, 2, 3)), (11, 6, (1, 3, 5, 7, 9, 11))])
def test_cuts_are_spread(cuts: int, most: int, chosen: tuple[int, ...]) -> None:
    """The first and the last are always tried."""
    assert spread(cuts, most) == chosen


def test_an_error_that_does_not_come_is_a_failure() -> None:
    """Neither silence nor another error will do."""
    with pytest.raises(ConformanceFailure, match="it returned 5, expected NotRunning"):
        expect_error(NotRunning, lambda: 5, "it")
    with pytest.raises(ConformanceFailure, match="it raised KeyError, expected NotRunning"):
        expect_error(NotRunning, lambda: {}["x"], "it")
