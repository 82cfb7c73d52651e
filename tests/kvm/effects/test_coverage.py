"""Every parameter of the driver has a proof that it takes effect."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hvcore import parameter_rows

_HERE = Path(__file__).parent
_TESTS = _HERE.parent

_PARAMETERS = ("params.", "disks[].params.", "nics[].params.")

FAMILIES = {
    # plugin: where its parameters are proved
    "NIC mode user": "test_nic_user.py",
    "NIC mode bridged": "test_nic_bridged.py",
    "NIC mode macvtap": "nics/test_nic_macvtap.py",
    "NIC mode openvswitch": "nics/test_nic_openvswitch.py",
    "NIC mode passt": "nics/test_nic_passt.py",
    "NIC mode routed": "nics/test_nic_routed.py",
    "NIC mode script": "nics/test_nic_script.py",
    "NIC mode vhost-user": "nics/test_nic_vhost_user.py",
    "security model user": "test_security_user.py",
    "security model confined": "test_security_confined.py",
    "security model pool": "test_security_pool.py",
    "console type vnc": "consoles/test_console_vnc.py",
    "console type serial": "consoles/test_console_serial.py",
    "console type pty": "consoles/test_console_pty.py",
    "console type virtconsole": "consoles/test_console_virtconsole.py",
    "console type spice": "consoles/test_console_spice.py",
}


def _modules() -> Iterator[ModuleType]:
    for path in sorted(_HERE.glob("test_*.py")):
        if path.name != Path(__file__).name:
            spec = importlib.util.spec_from_file_location(f"effects_of_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            yield module


def _proved() -> set[str]:
    """The parameters that a table or a test of this directory names."""
    proved: set[str] = set()
    for module in _modules():
        for effect in getattr(module, "EFFECTS", ()):
            proved |= set(effect.shows)
        for lacking in getattr(module, "HARDWARE", ()):
            assert lacking.why
            proved |= set(lacking.parameters)
        for name, value in vars(module).items():
            if name.startswith("test_"):
                proved |= set(getattr(value, "proves", ()))
    return proved


@pytest.fixture
def declared(host: Any) -> dict[str, str]:
    """The plugin of each parameter, empty for the driver's own."""
    table = host.driver.parameters()
    plugins = {section.title: section.plugin for section in table.sections}
    rows = (row for row in parameter_rows(table) if row.path.startswith(_PARAMETERS))
    return {row.path: plugins[row.section] for row in rows}


@pytest.mark.qemu
def test_every_parameter_has_an_effect(declared: dict[str, str]) -> None:
    """None of the driver's own parameters is without a question to a running QEMU, or the reason why not."""
    proved = _proved()
    own = {path for path, plugin in declared.items() if not plugin}
    assert own - proved == set(), "parameters without an effect row"
    assert proved - set(declared) == set(), "rows of parameters that there are not"


@pytest.mark.qemu
def test_parameters_of_plugins_have_tests_of_their_own(declared: dict[str, str]) -> None:
    """Each parameter of a family plugin is named in the test file of that plugin."""
    missing = []
    for path, plugin in sorted(declared.items()):
        if plugin:
            file = _TESTS / FAMILIES.get(plugin, "(none)")
            name = path.rpartition(".")[2]
            if not file.is_file() or name not in file.read_text():
                missing.append(f"{path}: {file.relative_to(_TESTS)}")
    assert missing == []
