"""The verdict as one HTML page: everything in it, nothing fetched, and no script."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.conformance.verdict import CheckResult, RequirementResult, Verdict

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
code { font-size: .9em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.passed, .conformant { color: #16753a; }
.failed { color: #c02020; font-weight: bold; }
.partial, .not-run, .not-probed { color: #9a6200; }
@media (prefers-color-scheme: dark) {
 .passed, .conformant { color: #5fc98a; }
 .failed { color: #ff7b7b; }
 .partial, .not-run, .not-probed { color: #e0aa4e; }
}
"""


def verdict_page(verdict: Verdict) -> str:
    """The page. Whatever a driver or a check said is text in it, never markup.

    Args:
        verdict: what is reported.
    """
    return "\n".join((*_head(verdict), *_summary(verdict), *_sentences(verdict), "</body></html>", ""))


def _head(verdict: Verdict) -> Iterator[str]:
    title = _text(verdict.title)
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield f"<title>{title}: {verdict.verdict}</title><style>{_STYLE}</style></head><body>"
    yield f'<h1>{title}: <span class="{verdict.verdict}">{verdict.verdict}</span></h1>'


def _summary(verdict: Verdict) -> Iterator[str]:
    plain = verdict.as_dict()
    if plain["hypervisor"]:
        yield f"<p>{_text(plain['hypervisor'])}, hvcore {_text(plain['hvcore'])}</p>"
    if verdict.problems:
        yield "<ul>" + "".join(f'<li class="failed"><pre>{_text(said)}</pre></li>' for said in verdict.problems)
        yield "</ul>"
    yield "<table><tr><th>Sentences</th><th>Status</th><th></th></tr>"
    for status, meaning in verdict.meanings.items():
        yield f'<tr><td>{verdict.counts[status]}</td><td class="{status}">{status}</td><td>{meaning}</td></tr>'
    yield "</table>"
    if plain["claims"]:
        yield "<details><summary>What the driver claims</summary><table>"
        for name, level in plain["claims"].items():
            yield f"<tr><td>{_text(name)}</td><td>{_text(level)}</td></tr>"
        yield "</table></details>"


def _sentences(verdict: Verdict) -> Iterator[str]:
    yield "<table><tr><th>Sentence</th><th>Status</th><th>Checks</th></tr>"
    for result in verdict.results:
        yield from _sentence(result)
    yield "</table>"


def _sentence(result: RequirementResult) -> Iterator[str]:
    requirement = result.requirement
    about = ", ".join(requirement.operations) or "all"
    yield f'<tr id="{_text(requirement.id)}"><td><strong>{_text(requirement.id)}</strong> ({_text(about)})<br>'
    yield f'{_text(requirement.text)}</td><td class="{result.status}">{result.status}</td>'
    yield f"<td>{''.join(map(_check, result.checks))}</td></tr>"


def _check(check: CheckResult) -> str:
    said = f"<pre>{_text(check.message)}</pre>" if check.message else ""
    seconds = f" {check.duration:.2f} s" if check.duration else ""
    outcome = f'<span class="{check.outcome}">{check.outcome}</span>'
    return f"<div><code>{_text(check.check)}</code> {outcome}{seconds}{said}</div>"


def _text(value: str) -> str:
    return html.escape(value)
