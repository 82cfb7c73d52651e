"""From what a user wrote to typed records: strict, and every problem at once."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hvcore
from hvcore import (
    Disk,
    Finding,
    Instance,
    Nic,
    ParameterSection,
    Seconds,
    Size,
    checks,
    param,
    structure,
    structure_sections,
)
from hvcore import read_definition as read


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen(kw_only=True)
class Inner:
    port: int = param(checks=(checks.port_number,), summary="A port.")
    secret: str = param(default="", secret=True, choices=("", "x"), summary="A secret.")


@attrs.frozen(kw_only=True)
class Everything:
    text: str = param(default="", summary="Text.")
    number: int = param(default=0, summary="Number.")
    ratio: float = param(default=0.0, summary="Ratio.")
    flag: bool = param(default=False, summary="Flag.")
    size: Size = param(default=Size(0), summary="Size.")
    wait: Seconds = param(default=Seconds(0.0), summary="Wait.")
    colour: Colour = param(default=Colour.RED, summary="Colour.")
    maybe: int | None = param(default=None, summary="Maybe.")
    words: tuple[str, ...] = param(default=(), summary="Words.")
    flags: Mapping[str, bool] = param(factory=dict, summary="Flags.")
    inner: tuple[Inner, ...] = param(default=(), summary="Inner.")


def _problems(fields: type, values: Any) -> set[tuple[str, str]]:
    return {(finding.code, finding.path) for finding in structure(fields, values)[1]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "a"}, {"text": "a"}),
        ({"number": -3}, {"number": -3}),
        ({"ratio": 2}, {"ratio": 2.0}),
        ({"flag": True}, {"flag": True}),
        ({"size": 4096}, {"size": 4096}),
        ({"size": "1.5GiB"}, {"size": 3 << 29}),
        ({"wait": "500ms"}, {"wait": 0.5}),
        ({"wait": 3}, {"wait": 3.0}),
        ({"colour": "blue"}, {"colour": Colour.BLUE}),
        ({"maybe": None}, {"maybe": None}),
        ({"maybe": 7}, {"maybe": 7}),
        ({"words": ["a", "b"]}, {"words": ("a", "b")}),
        ({"flags": {"a": True}}, {"flags": {"a": True}}),
        ({"inner": [{"port": 1}]}, {"inner": (Inner(port=1),)}),
    ],
)
def test_what_is_right_is_taken(values: dict[str, Any], expected: dict[str, Any]) -> None:
    """Values of the right type become fields of the right type."""
    record, findings = structure(Everything, values)
    assert findings == []
    found = {name: getattr(record, name) for name in expected}
    assert found == expected
    assert {name: type(value) for name, value in found.items() if name != "flags"} == {
        name: type(value) for name, value in expected.items() if name != "flags"
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", 1),
        ("text", None),
        ("text", b"x"),
        ("number", True),
        ("number", "12"),
        ("number", 1.0),
        ("number", None),
        ("ratio", "1"),
        ("ratio", True),
        ("ratio", float("nan")),
        ("ratio", float("inf")),
        ("flag", 1),
        ("flag", "true"),
        ("size", True),
        ("size", 1.5),
        ("wait", -1),
        ("maybe", "7"),
        ("words", "ab"),
        ("words", {"a": 1}),
        ("flags", []),
        ("flags", {1: True}),
        ("flags", {"a": 1}),
        ("inner", {}),
    ],
)
def test_types_are_strict(field: str, value: Any) -> None:
    """Nothing is coerced: no True for 1, no "12" for 12, no text for a list."""
    assert _problems(Everything, {field: value}) == {("wrong-type", field)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "12"),
        ("size", "x"),
        ("size", -1),
        ("size", 2**63),
        ("wait", "5"),
        ("number", 2**63),
        ("text", "x" * 70000),
    ],
)
def test_values_out_of_range_are_told_from_wrong_types(field: str, value: Any) -> None:
    """A value of the right type that means nothing is an invalid value."""
    assert _problems(Everything, {field: value}) == {("invalid-value", field)}


def test_all_problems_with_the_way_down_to_each() -> None:
    """Unknown, missing, mistyped and invalid are reported together, at their places."""
    values = {"texte": 1, "colour": "green", "inner": [{"port": 0}, {}, 5, {"port": 1, "prot": 2}], "words": ["a", 2]}
    assert _problems(Everything, values) == {
        ("unknown-parameter", "texte"),
        ("not-a-choice", "colour"),
        ("invalid-value", "inner[0].port"),
        ("missing-parameter", "inner[1].port"),
        ("wrong-type", "inner[2]"),
        ("unknown-parameter", "inner[3].prot"),
        ("wrong-type", "words[1]"),
    }


def test_a_secret_is_never_in_a_message() -> None:
    """What is wrong with a secret is said without saying the secret."""
    _, findings = structure(Inner, {"port": 1, "secret": "hunter2"})
    assert findings
    assert not any("hunter2" in str(finding) for finding in findings)
    assert "hunter2" not in repr(Inner(port=1, secret="hunter2"))


def test_the_nearest_names_are_hinted() -> None:
    """An unknown key names its nearest neighbour, and nothing when there is none."""
    hints = {f.path: f.hint for f in structure(Everything, {"colur": 1, "zzzzzz": 2})[1]}
    assert hints == {"colur": "did you mean colour?", "zzzzzz": None}


def test_sections_share_a_table_and_plugins_have_their_own() -> None:
    """A driver's sections lie side by side, a plugin's under its name; rules run only on sound sections."""

    @attrs.frozen(kw_only=True)
    class One:
        a: int = param(default=1, summary="A.")

    @attrs.frozen(kw_only=True)
    class Two:
        b: int = param(default=2, summary="B.")

    def rule(record: Two) -> Any:
        if record.b == 13:
            yield Finding(code="unlucky", path="b", message="is unlucky")

    sections = [
        ParameterSection(title="One", place="instance", fields=One),
        ParameterSection(title="Two", place="instance", fields=Two, name="two", rules=(rule,)),
    ]
    records, findings = structure_sections(sections, {"a": 5, "two": {"b": 13}, "b": 1}, "params")
    assert records[One].a == 5
    assert {(f.code, f.path) for f in findings} == {("unknown-parameter", "params.b"), ("unlucky", "params.two.b")}
    assert structure_sections(sections, 5, "params")[1][0].code == "wrong-type"


def test_an_instance_is_checked_like_a_file() -> None:
    """A record made in a program is held to the same rules as an instance file."""
    bad = Instance(
        name="../x", memory="lots", disks=[Disk(path="x", format="raw")], nics=[Nic(mac="01:00:00:00:00:00")]
    )
    _, findings = read(bad)
    assert {f.path for f in findings} == {"name", "memory", "disks[0].path", "nics[0].mac"}


def test_repetitions_are_found() -> None:
    """Two devices cannot share a uuid, a name, a hardware address or a path."""
    uuid = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"
    disk = {"path": "/a", "format": "raw", "uuid": uuid, "name": "x"}
    nics = [{"mac": "52:54:00:00:00:0a"}, {"mac": "52:54:00:00:00:0A"}]
    _, findings = read({"name": "w", "disks": [disk, {**disk, "uuid": uuid.upper()}], "nics": nics})
    assert {f.path for f in findings} == {"disks[1].uuid", "disks[1].name", "disks[1].path", "nics[1].mac"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(JSON)
def test_anything_at_all_is_answered_with_findings(value: Any) -> None:
    """No input, however strange, raises: it is a definition or it has findings."""
    instance, findings = read(value)
    assert isinstance(instance, Instance)
    assert findings or isinstance(value, dict)


@given(st.dictionaries(st.sampled_from([f.name for f in attrs.fields(Instance)]), JSON))
def test_any_values_for_known_keys_are_answered(values: dict[str, Any]) -> None:
    """The same for values of known keys."""
    instance, findings = read(values)
    assert isinstance(instance, Instance)
    assert findings or hvcore.FindingSet(findings).ok


@given(st.integers(0, 2**63 - 1))
def test_sizes_read_back(size: int) -> None:
    """Every size is written so that it is read back exactly."""
    assert hvcore.parse_size(hvcore.format_size(size)) == size


@pytest.mark.parametrize(
    "text", ["", "12", "-1MiB", "1 2MiB", "1e3MiB", "MiB", "1.MiB", "9999999TiB", "1.0000001KiB", "٣MiB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """A size is a number and a unit, exactly, in bytes."""
    with pytest.raises(ValueError, match=r"size|bytes|larger"):
        hvcore.parse_size(text)
