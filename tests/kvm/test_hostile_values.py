"""Hostile values: each is a finding, or QEMU has exactly that value; none makes an option, a device or a file."""

from __future__ import annotations

import json
import os
import typing
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hvcore
from hvcore import Deadline, Disk, Nic
from hvcore.model.instance import Instance
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

_PIECES = (
    *(
        ",",
        ",,",
        "=",
        "'",
        '"',
        "\n",
        "\r",
        "\0",
        " ",
        "\t",
        "\\",
        "%s",
        "$(id)",
        "`id`",
        ";",
        "&",
        "#",
        "?",
        "*",
        "\x7f",
    ),
    *("é", "🙂", "\ud800", "\u202e", "\ufeff", "-", "--", "-device", "-S", "on", "off", "id=x", "file=/etc/passwd"),
    *("json:", 'json:{"driver":"null-co"}', '{"driver":"null-co"}', "nbd://127.0.0.1:1/e", "nbd:unix:/s", "fat:/etc"),
    *(
        "http://127.0.0.1:1/x",
        "../",
        "/..",
        "/",
        "//",
        "/etc/passwd",
        "/dev/fdset/1",
        "/proc/self/mem",
        "exec:id",
        "fd:3",
    ),
    *("a", "disk0", "q35", "a" * 70, "a" * 5000),
)
HUGE = "a" * 1_000_000

_HOSTILE = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4).map("".join) | st.text(max_size=40)


def _examples(number: int) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=number, suppress_health_check=checks)


def _text_paths() -> list[str]:
    """Every parameter of the driver that holds text somewhere, by its path."""
    roots = {f"{kind}_directory": f"/nonexistent/{kind}" for kind in ("state", "data", "cache")}
    with hvcore.load_driver("kvm", roots) as driver:
        rows = hvcore.parameter_rows(driver.parameters())
    skipped = ("params.disk.", "params.nic.")  # the same as of each disk and NIC
    return sorted({row.path for row in rows if ("text" in row.type) and not row.path.startswith(skipped)})


def _placed(path: str, value: str) -> dict[str, Any]:
    """A definition with a value at the path of a parameter, and otherwise as little as goes with it."""
    definition: dict[str, Any] = {"name": "web1", "params": {}}
    kinds = {row.path: row.type for row in _ROWS}
    leaf: Any = value
    if kinds[path].startswith("list of"):
        leaf = [value]
    elif kinds[path].startswith("table of"):
        leaf = {value: value}
    parts = path.split(".")
    for index in range(len(parts) - 1, -1, -1):
        name = parts[index]
        if name == "NAME":
            leaf = {"group": leaf}
        elif name.endswith("[]"):
            leaf = {name.removesuffix("[]"): [leaf]}
        else:
            leaf = {name: leaf}
    definition |= leaf
    for disk in definition.get("disks", ()):
        disk.setdefault("path", "/srv/disk.raw")
        disk.setdefault("format", "raw")
    return definition


_ROOTS = {f"{kind}_directory": f"/nonexistent/{kind}" for kind in ("state", "data", "cache")}
with hvcore.load_driver("kvm", _ROOTS) as _driver:
    _ROWS = hvcore.parameter_rows(_driver.parameters())


@pytest.fixture(scope="module")
def driver() -> typing.Iterator[hvcore.Driver]:
    with hvcore.load_driver("kvm", _ROOTS) as loaded:
        yield loaded


@pytest.mark.parametrize("path", _text_paths())
def test_any_text_is_checked_without_a_fault(driver: hvcore.Driver, path: str) -> None:
    """Whatever a text is, checking it finds something or nothing, and says where; it never fails, and stays short."""

    @_examples(60)
    @given(_HOSTILE)
    @example(HUGE)
    @example("\0")
    @example("\ud800")
    @example("")
    def check(value: str) -> None:
        for finding in driver.check_parameter_syntax(_placed(path, value)):
            assert finding.path
            assert len(finding.message) < 1500
            finding.message.encode(errors="strict" if "\ud800" not in value else "surrogatepass")

    check()


@pytest.mark.parametrize("path", _text_paths())
def test_huge_and_binary_text_is_refused(driver: hvcore.Driver, path: str) -> None:
    """A megabyte and NUL are wrong everywhere."""
    for value in (HUGE, "a\0b", "a\ud800"):
        assert not driver.check_parameter_syntax(_placed(path, value)).ok, value[:5]


def _qmp(host: Any, command: str, **arguments: Any) -> Any:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), Deadline.after(20)) as client:
        return client.execute(command, arguments, deadline=Deadline.after(20))


def _property(host: Any, path: str, name: str) -> Any:
    return _qmp(host, "qom-get", path=path, property=name)


@attrs.frozen(kw_only=True)
class Field:
    """A text of a definition that QEMU can be asked about.

    Attributes:
        name: what it is, for the test's id.
        definition: the definition with the value; gets the host and the value.
        ask: what QEMU says it is; gets the host and the plan.
    """

    name: str
    definition: Any
    ask: Any


def _option(plan: hvcore.Plan, name: str, contains: str) -> Any:
    return next(o.value for o in plan.options if o.name == name and contains in json.dumps(o.value))


def _kernel(host: Any) -> str:
    path = host.directory / "kernel"
    if not path.exists():
        path.write_bytes(b"\0" * 65536)
    return str(path)


def _named(host: Any, value: str) -> str:
    """A file of a hostile name, if the file system can have it."""
    path = f"{host.directory}/{value}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(1 << 20)
    except (OSError, ValueError, UnicodeEncodeError):
        pass  # then the definition names a file that is not there
    return path


def _opened(host: Any) -> set[str]:
    """Files below the test's directory that QEMU has open, beside those of every instance."""
    links = host.open_files()
    return {link for link in links if link.startswith(str(host.directory)) and "/state/" not in link}


FIELDS = (
    Field(
        name="cmdline",
        definition=lambda host, v: host.instance(
            params={"firmware_image": None, "kernel": _kernel(host), "cmdline": v}
        ),
        ask=lambda host, plan: _property(host, "/machine", "append"),
    ),
    Field(
        name="disk-serial",
        definition=lambda host, v: host.instance(disks=[attrs.evolve(host.raw_disk(), params={"serial": v})]),
        ask=lambda host, plan: _property(
            host, f"/machine/peripheral/{_option(plan, 'device', 'virtio-blk')['id']}", "serial"
        ),
    ),
    Field(
        name="machine-firmware",
        definition=lambda host, v: host.instance(params={"firmware_image": _firmware(host, v)}),
        ask=lambda host, plan: str(_property(host, "/machine", "firmware")).removeprefix(f"{host.directory}/fw"),
    ),
    Field(
        name="throttle-group",
        definition=lambda host, v: host.instance(params={"throttle_groups": {v: {"iops_total": 10}}}),
        ask=lambda host, plan: next(
            row["name"].removeprefix("group-")
            for row in _qmp(host, "qom-list", path="/objects")
            if row["name"].startswith("group-")
        ),
    ),
    Field(
        name="disk-path",
        definition=lambda host, v: host.instance(disks=[Disk(path=_named(host, v), format="raw")]),
        ask=lambda host, plan: next(iter(_opened(host))).removeprefix(f"{host.directory}/"),
    ),
    Field(
        name="cdrom-path",
        definition=lambda host, v: host.instance(params={"cdroms": [{"path": _named(host, v)}]}),
        ask=lambda host, plan: next(iter(_opened(host))).removeprefix(f"{host.directory}/"),
    ),
    Field(
        name="nic-mac",
        definition=lambda host, v: host.instance(nics=[Nic(mac=v)]),
        ask=lambda host, plan: _property(
            host, f"/machine/peripheral/{_option(plan, 'device', 'virtio-net')['id']}", "mac"
        ),
    ),
)


def _firmware(host: Any, value: str) -> str:
    path = f"{host.directory}/fw{value}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(host.firmware.read_bytes())
    except (OSError, ValueError, UnicodeEncodeError):
        pass
    return path


_BENIGN = {"nic-mac": "52:54:00:00:00:01"}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_qemu_has_exactly_the_value_that_was_accepted(host: Any, field: Field) -> None:
    """A value is refused before anything happens, or QEMU reports it back letter by letter, and nothing else came."""
    benign = _BENIGN.get(field.name, "plain")
    names = [option.name for option in host.driver.plan_start(field.definition(host, benign)).options]
    accepted = []

    @_examples(12)
    @given(_HOSTILE)
    @example("a,b=c")
    @example("a,,b")
    @example("json:{}")
    @example("-S")
    @example('it\'s "quoted" \\ and é')
    @example(benign)
    def check(value: str) -> None:
        definition: Instance = field.definition(host, value)
        files = host.files()
        if not host.driver.validate_parameters(definition).ok:
            with pytest.raises(hvcore.InvalidParameters):
                host.driver.start_instance(definition)
            assert {path for path in host.files() if path.startswith("state")} <= files
            return
        plan = host.driver.plan_start(definition)
        assert [option.name for option in plan.options] == names
        host.driver.start_instance(definition, paused=True)
        try:
            assert field.ask(host, plan) == value
            accepted.append(value)
        finally:
            host.driver.stop_instance("web1", force=True)

    check()
    assert benign in accepted


def _as_qemu_reads(text: str) -> list[tuple[str, str]]:
    """The pairs of an option, by QEMU's rules (util/keyval: a doubled comma is a comma, a single one ends a value)."""
    pairs, current, index = [], "", 0
    while index <= len(text):
        if index == len(text) or (text[index] == "," and text[index + 1 : index + 2] != ","):
            key, equals, value = current.partition("=")
            pairs.append((key, value) if equals else ("", key))
            current = ""
        else:
            current += text[index]
            index += text[index] == ","
        index += 1
    return pairs


def _pairs(plan: hvcore.Plan, name: str, first: tuple[str, str]) -> dict[str, str]:
    found = (_as_qemu_reads(option.words[1]) for option in plan.options if option.name == name)
    return dict(next(pairs for pairs in found if pairs[0] == first))


def _node(plan: hvcore.Plan, name: str) -> Any:
    return next(json.loads(o.words[1]) for o in plan.options if o.name == "blockdev" and name in o.words[1])


PLANNED = (
    Field(
        name="smbios",
        definition=lambda host, v: host.instance(params={"smbios": {"product": v}}),
        ask=lambda host, plan: _pairs(plan, "smbios", ("type", "1"))["product"],
    ),
    Field(
        name="smbios-oem",
        definition=lambda host, v: host.instance(params={"smbios_oem": [v]}),
        ask=lambda host, plan: _pairs(plan, "smbios", ("type", "11"))["value"],
    ),
    Field(
        name="fw-cfg",
        definition=lambda host, v: host.instance(params={"fw_cfg": {"opt/a": v}}),
        ask=lambda host, plan: _pairs(plan, "fw_cfg", ("name", "opt/a"))["string"],
    ),
    Field(
        name="cdrom-url",
        definition=lambda host, v: host.instance(params={"cdroms": [{"url": f"https://example.com/{v}"}]}),
        ask=lambda host, plan: _node(plan, "cdrom0")["file"]["url"].removeprefix("https://example.com/"),
    ),
    Field(
        name="rbd-image",
        definition=lambda host, v: host.instance(disks=[Disk(uri=f"rbd:pool/{v}", format="raw")]),
        ask=lambda host, plan: _rbd(_node(plan, "disk-")["file"]),
    ),
)


def _rbd(node: dict[str, str]) -> str:
    """The URI of an image, from QEMU's typed options."""
    space = f"{node['namespace']}/" if "namespace" in node else ""
    snapshot = f"@{node['snapshot']}" if "snapshot" in node else ""
    options = [f":{'id' if name == 'user' else name}={node[name]}" for name in node if name in ("user", "conf")]
    return f"{space}{node['image']}{snapshot}{''.join(options)}"


@pytest.mark.parametrize("field", PLANNED, ids=lambda field: field.name)
def test_a_planned_option_holds_exactly_the_value(host: Any, field: Field) -> None:
    """What QEMU cannot be asked about is read as QEMU would read it; no value makes another option."""
    names = [option.name for option in host.driver.plan_start(field.definition(host, "plain")).options]
    accepted = []

    @_examples(80)
    @given(_HOSTILE)
    @example("a,b=c")
    @example("a,,b,")
    @example(",")
    @example("=")
    @example("exec:id=,")
    @example("plain")
    def check(value: str) -> None:
        definition = field.definition(host, value)
        if not host.driver.validate_parameters(definition).ok:
            return
        plan = host.driver.plan_start(definition)
        assert [option.name for option in plan.options] == names
        assert field.ask(host, plan) == value
        accepted.append(value)

    check()
    assert "plain" in accepted
