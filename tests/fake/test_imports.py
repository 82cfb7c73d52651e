"""The fake driver is written as a third party's: with public names of hvcore only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hvcore
import hvcore_fake

MODULES = sorted(Path(hvcore_fake.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_only_public_names_are_imported(module: Path) -> None:
    """From hvcore itself, never from its modules; and never from another driver."""
    imports = [
        node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)
    ]
    found = []
    for node in imports:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("hvcore")]
        elif (node.module or "") == "hvcore":
            found += [alias.name for alias in node.names if alias.name not in hvcore.__all__]
        elif (node.module or "").startswith("hvcore") and not (node.module or "").startswith("hvcore_fake"):
            found.append(node.module)

    assert found == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_modules_stay_small(module: Path) -> None:
    """Each holds one thing."""
    assert len(module.read_text().splitlines()) < 300
