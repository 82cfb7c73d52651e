"""A wheel built from the tree works in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "-w", directory, ROOT)
    (found,) = directory.glob("hvcore-*.whl")
    return found


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    """Packages, typing markers, sources of guests, templates and the licence are in it; tests and documentation not."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"hvcore", "hvcore_kvm", "hvcore_fake"}
    for wanted in ("hvcore/py.typed", "hvcore_kvm/py.typed", "hvcore_fake/py.typed", "hvcore/guests/linux-init.sh"):
        assert wanted in names
    templates = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("hvcore/templates/*/*.tmpl")}
    assert templates
    assert templates <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


_USE = """
import sys, tempfile
import hvcore
directories = {f"{kind}_directory": tempfile.mkdtemp() for kind in ("state", "data", "cache")}
print(sorted(entry.name for entry in hvcore.available_drivers()))
for name in ("fake", "kvm"):
    with hvcore.load_driver(name, directories) as driver:
        print(driver.name, driver.check_parameter_syntax({"name": "web1", "nics": [{}]}).ok)
with hvcore.load_driver("fake", directories) as driver:
    driver.start_instance({"name": "web1"})
    print(driver.get_instance_info("web1").state.value, driver.stop_instance("web1", force=True).changed)
"""


@pytest.mark.timeout(300)
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed with nothing but its dependencies it offers both drivers, their families and a friendly hv."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "-q", "install", wheel, cwd=tmp_path)
    said = _run(python, "-I", "-c", _USE, cwd=tmp_path).splitlines()
    assert said == ["['fake', 'kvm']", "fake True", "kvm True", "running True"]
    without_extra = subprocess.run(
        [tmp_path / "venv" / "bin" / "hv", "list"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert without_extra.returncode == 1
    assert "hvcore[cli]" in without_extra.stderr
