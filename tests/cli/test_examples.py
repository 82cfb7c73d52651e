"""The example files of the documentation say only what drivers understand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import hvcore
from hvcore.cli.instance_file import read_instance_file

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.toml"))
SCHEMA = json.loads((DOCS / "reference" / "schema-kvm.json").read_text())


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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_the_json_schema(path: Path) -> None:
    """An independent validator says the same as the driver, of the schema that editors get."""
    Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
        read_instance_file(str(path))
    )


def test_the_json_schema_is_one_and_refuses_what_is_wrong() -> None:
    """It follows its own specification, and finds unknown names, wrong types and values that are no choice."""
    Draft202012Validator.check_schema(SCHEMA)
    good = {
        "name": "web1",
        "params": {"topology": {"cores": 2}, "cdroms": [{}]},
        "disks": [{"path": "/a", "format": "raw"}],
    }
    validator = Draft202012Validator(SCHEMA)
    assert list(validator.iter_errors(good)) == []
    for wrong in (
        {"nam": "web1"},
        {"name": "web1", "memory": "lots"},
        {"name": "web1", "params": {"machin": "pc"}},
        {"name": "web1", "params": {"accel": "xen"}},
        {"name": "web1", "params": {"topology": {"core": 2}}},
        {"name": "web1", "params": {"cdroms": [{"path": 1}]}},
        {"name": "web1", "params": {"throttle_groups": {"a": {"iops": 1}}}},
        {"name": "web1", "disks": [{"path": "/a", "format": "raw", "params": {"bus": "floppy"}}]},
        {"name": "web1", "nics": [{"params": {"queues": "4"}}]},
    ):
        assert list(validator.iter_errors(wrong)), wrong
