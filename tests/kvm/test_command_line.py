"""Options rendered so that no value can add another."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore_kvm import flag, json_option, keyed, word


@pytest.mark.parametrize(
    ("value", "rendered"),
    [("a", "a"), ("a,b=c", "a,,b=c"), (",", ",,"), (True, "on"), (False, "off"), (5, "5"), ("", "")],
)
def test_values_of_the_key_value_form(value: object, rendered: str) -> None:
    """Commas are doubled, booleans written out, nothing else is touched."""
    assert keyed("x", None, {"k": value}).words == ("-x", f"k={rendered}")


def test_the_parts_of_the_key_value_form() -> None:
    """A first value stands alone, values of None are left out."""
    assert keyed("x", "f,g", {"a": 1, "b": None, "c": "d"}, origin="o").words == ("-x", "f,,g,a=1,c=d")
    assert flag("S").words == ("-S",)
    assert word("append", "-a,b").words == ("-append", "-a,b")


@given(st.dictionaries(st.sampled_from("abc"), st.text()))
def test_what_qemu_reads_is_what_was_given(values: dict[str, str]) -> None:
    """Split as QEMU splits, at single commas, every value comes back, however many commas it has."""
    (_, rendered) = keyed("x", None, values).words
    parts = [part.replace("\0", ",") for part in rendered.replace(",,", "\0").split(",")] if values else []
    if not any("\0" in value or value.startswith(",") for value in values.values()):
        assert dict(part.split("=", 1) for part in parts) == values


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans()))
def test_json_options_are_one_word(values: dict[str, object]) -> None:
    """A JSON option is one word that reads back as it was."""
    words = json_option("device", values).words
    assert len(words) == 2
    assert json.loads(words[1]) == values
