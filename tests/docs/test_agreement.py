"""Facade, hooks, table, contract and reference agree; imports only point down."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.hookspecs.table import OPERATIONS, SPECIFICATIONS

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = ("hvcore_fake", "hvcore_kvm")
NAMES = {operation.name for operation in OPERATIONS}
FAMILIES = {"NicMode", "SecurityModel", "ConsoleType"}
_FILLED_IN = {"deadline", "grace", "name"}
_SENTENCE = re.compile(r"^- \*\*(?P<id>\w\w-\d\d)\*\* \((?P<about>[^)]*)\) (?P<text>.*)$")


def test_facade_hooks_table_and_reference_agree() -> None:
    """Each operation is a method, a specified hook of its topic and a section of the reference; nothing else is."""
    hooks = {
        name: module
        for module in SPECIFICATIONS
        for name, value in vars(module).items()
        if name.startswith("hv_") and inspect.isfunction(value) and value.__module__ == module.__name__
    }
    assert set(hooks) == {operation.hook for operation in OPERATIONS} | {"hv_operation"}
    assert {o.hook: o.topic for o in OPERATIONS} == {
        name: module.__name__.rpartition(".")[2] for name, module in hooks.items() if name != "hv_operation"
    }
    public = {name for name, _ in inspect.getmembers(hvcore.Driver, inspect.isfunction) if name[0] != "_"}
    assert public - {"close"} == NAMES
    sections = re.findall(r"^### (\w+)$", (ROOT / "docs/reference/operations.md").read_text(), re.MULTILINE)
    assert sections == [*(operation.name for operation in OPERATIONS), "hv_operation"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_method_and_hook_take_the_same_arguments(operation: hvcore.Operation) -> None:
    """But for those that the facade fills in, and those it turns into them."""
    module = next(m for m in SPECIFICATIONS if m.__name__.endswith(f".{operation.topic}"))
    hook = set(inspect.signature(getattr(module, operation.hook)).parameters) - _FILLED_IN
    method = set(inspect.signature(getattr(hvcore.Driver, operation.name)).parameters) - {"self", "timeout"}
    assert hook - {"instance"} == method - {"instance"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_specification_says_what_readers_need(operation: hvcore.Operation) -> None:
    """Each argument, the result, the errors, the capability and the version that introduced the hook."""
    module = next(m for m in SPECIFICATIONS if m.__name__.endswith(f".{operation.topic}"))
    hook = getattr(module, operation.hook)
    text = inspect.getdoc(hook) or ""
    for name in inspect.signature(hook).parameters:
        assert f"\n    {name}: " in text
    assert "\nReturns:\n" in text
    assert "Errors:" in text
    needed = f"``{operation.capability.value}``" if operation.capability else "none (every driver)"
    assert f"Capability: {needed}" in text
    assert f"Since: {operation.since}" in text


def _sentences() -> Iterator[re.Match[str]]:
    for line in (ROOT / "docs/contract.md").read_text().splitlines():
        if line.startswith("- "):
            found = _SENTENCE.match(line)
            assert found, f"not a contract sentence: {line}"
            yield found


def test_contract_ids_are_unique_and_in_order() -> None:
    """An id means one sentence, and each kind is numbered without a gap."""
    ids = [sentence["id"] for sentence in _sentences()]
    assert len(ids) == len(set(ids)) > 60
    for kind in {found.partition("-")[0] for found in ids}:
        numbers = [int(found[3:]) for found in ids if found.startswith(kind)]
        assert numbers == list(range(1, len(numbers) + 1)), kind


def test_contract_sentences_are_testable_and_name_operations() -> None:
    """Each says MUST, and names operations that exist, all of them, or what surrounds them."""
    for sentence in _sentences():
        assert "MUST" in sentence["text"], sentence["id"]
        about = sentence["about"]
        assert about == "All" or re.fullmatch(r"`\w+`(, `\w+`)*", about), sentence["id"]
        assert set(re.findall(r"`(\w+)`", about)) <= NAMES | {"load_driver", "hv_operation"} | FAMILIES, sentence["id"]


def test_every_operation_is_in_the_contract() -> None:
    """No operation is without a promise of its own, but for what the other sentences about it say."""
    named = {name for sentence in _sentences() for name in re.findall(r"`(\w+)`", sentence["about"])}
    silent = {"hotplug_supported", "verify_hotplug_support", "screenshot"}
    silent |= {"versions_safe_for_migration", "migration_info"}
    assert NAMES - named == silent


def _imports(package: str) -> Iterator[tuple[Path, str, str]]:
    """Every import below a package: file, module, name."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                yield from ((path, node.module or "", alias.name) for alias in node.names)


def test_hvcore_imports_no_driver() -> None:
    """Imports only point down."""
    assert [found for found in _imports("hvcore") if found[1].partition(".")[0] in DRIVERS] == []


@pytest.mark.parametrize("package", DRIVERS)
def test_drivers_import_public_names_only(package: str) -> None:
    """A driver has no privileges: it takes from hvcore what hvcore offers to everybody; guests are for its profile."""
    for path, module, name in _imports(package):
        top = module.partition(".")[0]
        if module in ("hvcore.guests", "hvcore.conformance") and "conformance" in str(path.relative_to(ROOT)):
            continue  # what a driver is tested with, not what it runs with
        if top == "hvcore":
            assert module == "hvcore", f"{path.relative_to(ROOT)} imports {module}"
            assert name == "" or name in hvcore.__all__, f"{path.relative_to(ROOT)} imports {name}"
        assert top not in set(DRIVERS) - {package}, f"{path.relative_to(ROOT)} imports {module}"


def test_family_plugins_import_public_names_of_their_driver_only() -> None:
    """The shipped NIC modes, security models and console types have no privileges either."""
    import hvcore_kvm

    for folder in ("nic", "security", "console"):
        for path, module, name in _imports(f"hvcore_kvm/{folder}"):
            if module.partition(".")[0] == "hvcore_kvm":
                assert module == "hvcore_kvm", f"{path.relative_to(ROOT)} imports {module}"
                assert name in hvcore_kvm.__all__, f"{path.relative_to(ROOT)} imports {name}"


def test_every_public_name_can_be_imported() -> None:
    """The table of lazy exports names what is there, and ``TYPE_CHECKING`` sees the same names."""
    for name in hvcore.__all__:
        assert getattr(hvcore, name) is not None
    tree = ast.parse((ROOT / "hvcore/__init__.py").read_text())
    shown = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(hvcore.__all__) - {"__version__"} <= shown
