"""The example files of the documentation say only what drivers understand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.cli.instance_file import read_instance_file

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_no_errors(path: Path, tmp_path: Path) -> None:
    """Their syntax is right for the KVM driver; whether their disks are there is another matter."""
    settings = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    with hvcore.load_driver("kvm", settings) as driver:
        assert list(driver.check_parameter_syntax(read_instance_file(str(path)))) == []


@pytest.mark.qemu
def test_the_minimal_example_can_be_started_anywhere(hv: Callable[..., Any]) -> None:
    """It needs nothing that a host with QEMU does not have."""
    minimal = next(path for path in EXAMPLES if path.stem == "minimal")
    assert hv("check", minimal).returncode == 0
