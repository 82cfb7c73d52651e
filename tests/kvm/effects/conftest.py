"""Starts real QEMU as an effect says, asks it, and compares."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient

sys.path.insert(0, str(Path(__file__).parent))

from kvm_effect import PATIENCE, Effect, File, Folder, Probe, answer

Begin = Callable[..., contextlib.AbstractContextManager[Probe]]


def _resolve(value: Any, directory: Path) -> Any:
    """A definition with its files made and named."""
    if isinstance(value, File):
        path = directory / value.name
        if not path.exists():
            if value.make is not None:
                value.make(path)
            else:
                path.write_bytes(value.content or bytes(value.size))
            path.chmod(value.mode)
        return str(path)
    if isinstance(value, Folder):
        (directory / value.name).mkdir(exist_ok=True)
        return str(directory / value.name)
    if isinstance(value, Mapping):
        return {key: _resolve(item, directory) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(item, directory) for item in value]
    return value


@pytest.fixture(params=["installed", "newer"])
def host(request: pytest.FixtureRequest, make_host: Callable[..., Any]) -> Any:
    """A host with the installed QEMU, and one with a newer QEMU where there is one."""
    settings = {"qemu": request.getfixturevalue("newer_qemu")} if request.param == "newer" else {}
    made = make_host(**settings)
    marker = request.node.get_closest_marker("qemu_versions")
    if marker is not None:
        version = dict(made.driver.get_node_info().hypervisor)["qemu"]
        first, last = marker.args
        if not first <= int(version.partition(".")[0]) <= last:
            pytest.skip(f"not for QEMU {version}")
    return made


@pytest.fixture
def resolve(tmp_path: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Makes a whole definition of the part that matters: its files are made, and the rest is small."""

    def make(given: Mapping[str, Any], name: str = "web1") -> dict[str, Any]:
        params = {"machine": "pc", "accel": "tcg", **given.get("params", {})}
        # Unconfined: many questions are answered into a file that QEMU writes.
        whole = {"name": name, "memory": "64MiB", "security_model": "none", **given, "params": params}
        return dict(_resolve(whole, tmp_path))

    return make


@pytest.fixture
def begin_on(resolve: Callable[..., dict[str, Any]]) -> Begin:
    """Starts an instance on a host, paused, and gives a probe of it; it is stopped at the end."""

    @contextlib.contextmanager
    def run(host: Any, given: Mapping[str, Any], name: str = "web1") -> Iterator[Probe]:
        host.driver.start_instance(resolve(given, name), paused=True)
        directory = host.directory / "state" / "kvm" / "instances" / name
        pid = host.pid(name)
        with QmpClient.connect(str(directory / "query"), Deadline.after(PATIENCE)) as client:
            yield Probe(client, pid, directory)
        host.driver.stop_instance(name, force=True)

    return run


@pytest.fixture
def begin(host: Any, begin_on: Begin) -> Begin:
    """The same on a host with nothing special about it."""
    return functools.partial(begin_on, host)


@pytest.fixture
def prove(begin: Begin) -> Callable[[Effect], None]:
    """Proves an effect: each question gets its answer, and another one where the parameters are not given."""

    def check(effect: Effect) -> None:
        with begin(effect.given) as probe:
            found = {name: answer(ask, probe) for name, (ask, _) in effect.shows.items()}
        assert found == {name: expect for name, (_, expect) in effect.shows.items()}
        with begin(effect.base, "without") as probe:
            before = {name: answer(ask, probe) for name, (ask, _) in effect.shows.items()}
        unmoved = [name for name, (_, expect) in effect.shows.items() if before[name] == expect]
        assert unmoved == [], f"the same without the parameter: {unmoved}"

    return check
