"""Drivers with extensions: the fake driver, and one whose answers a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import ParameterSection, ParameterTable, hookimpl, param


@attrs.frozen(kw_only=True)
class Inner:
    """A nested record of parameters."""

    shown: str = param(default="", summary="Shown.")
    hidden: str = param(default="", secret=True, summary="Hidden.")


@attrs.frozen(kw_only=True)
class Tree:
    """A record that may hold itself."""

    below: Tree | None = param(default=None, summary="Another.")


@attrs.frozen(kw_only=True)
class Own:
    """Parameters of the driver."""

    machine: str = param(default="", summary="Shown.")
    token: str = param(default="", secret=True, summary="Hidden.")
    features: dict[str, bool] = param(factory=dict, summary="Shown.")
    inner: Inner | None = param(default=None, summary="A table.")
    inners: tuple[Inner, ...] = param(default=(), summary="Tables.")
    tree: Tree | None = param(default=None, summary="A table in itself.")


@attrs.frozen(kw_only=True)
class Vnc:
    """Parameters of a console type."""

    password: str = param(default="", secret=True, summary="Hidden.")
    bind: str = param(default="", summary="Shown.")


@attrs.frozen(kw_only=True)
class OfDisk:
    """Parameters of a disk."""

    key: str = param(default="", secret=True, summary="Hidden.")
    cache: str = param(default="", summary="Shown.")


TABLE = ParameterTable(
    sections=(
        ParameterSection(title="Own", place="instance", fields=Own),
        ParameterSection(title="VNC", place="instance", fields=Vnc, name="vnc"),
        ParameterSection(title="Disk", place="disk", fields=OfDisk),
        # Another plugin's parameter of the same name is no secret: it is masked all the same.
        ParameterSection(
            title="Other disk", place="disk", fields=attrs.make_class("Plain", {"key": param(summary="-")})
        ),
    )
)

Answers = dict[str, Any]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., hvcore.Driver]]:
    """Loads a driver with ``TABLE`` whose hooks return, raise or call what ``answers`` says; records every call."""
    from hvcore_fake.plugin import FakeDriver

    directories = hvcore.Directories(**{kind: str(tmp_path / kind) for kind in ("state", "data", "cache")})
    claims = tuple(hvcore.Claim(capability=c) for c in (hvcore.Capability.HOTPLUG, hvcore.Capability.CONSOLE_PASSWORD))
    drivers = []

    def make(*extensions: object, answers: Answers | None = None, name: str = "told") -> hvcore.Driver:
        given = {} if answers is None else answers

        def answer(operation: str, usual: Any) -> Any:
            found = given.get(operation, usual)
            if isinstance(found, BaseException):
                raise found
            return found() if callable(found) else found

        changed = hvcore.Transition(name="web1", before=None, after=None, changed=True, detail="")

        class Told(FakeDriver):
            @hookimpl
            def hv_describe_driver(self) -> Any:
                return attrs.evolve(super().hv_describe_driver(), claims=claims)

            @hookimpl
            def hv_parameters(self) -> Any:
                return answer("parameters", TABLE)

            @hookimpl
            def hv_check_parameter_syntax(self, instance: Any) -> Any:
                return answer("check_parameter_syntax", hvcore.FindingSet(()))

            @hookimpl
            def hv_start_instance(self, instance: Any, paused: bool, deadline: Any) -> Any:
                return answer("start_instance", changed)

            @hookimpl
            def hv_stop_instance(
                self, name: str, force: bool, grace: float, retry: bool, escalate: bool, deadline: Any
            ) -> Any:
                return answer("stop_instance", changed)

            @hookimpl
            def hv_list_instances(self, deadline: Any) -> Any:
                return answer("list_instances", hvcore.InstanceListing(instances=()))

            @hookimpl
            def hv_hotplug_supported(self, name: str, deadline: Any) -> Any:
                return answer("hotplug_supported", None)

            @hookimpl
            def hv_verify_hotplug_support(self, name: str, action: str, device: Any, deadline: Any) -> Any:
                return answer("verify_hotplug_support", None)

            @hookimpl
            def hv_hot_add_device(self, name: str, device: Any, deadline: Any) -> Any:
                return answer("hot_add_device", None)

            @hookimpl
            def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Any) -> Any:
                return answer("hot_del_device", None)

            @hookimpl
            def hv_hot_mod_device(self, name: str, device: Any, deadline: Any) -> Any:
                return answer("hot_mod_device", None)

            @hookimpl
            def hv_set_console_password(
                self, name: str, kind: str, password: str, expires: float | None, deadline: Any
            ) -> Any:
                return answer("set_console_password", hvcore.PasswordResult(kind=kind))

        context = hvcore.DriverContext(name=name, directories=directories, settings={}, host_id="h")
        driver = hvcore.load_plugin(Told(context), context, label="told (told-hv 1.0)", extensions=extensions)
        drivers.append(driver)
        return driver

    yield make
    for driver in drivers:
        driver.close()


@pytest.fixture
def fake_settings(tmp_path: Path) -> dict[str, Any]:
    return {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
