"""One rule says what a label is, wherever it comes from."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbert.data.labels import alike, label_text, no_class, number, plain


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([0, 0.0, "0", "0.0", " 0 ", "0.", -0.0, "-0.0", decimal.Decimal("0.00")], "0"),
        ([-1, -1.0, "-1", "-1.00"], "-1"),
        ([True, "True", "true", "TRUE "], "true"),
        ([False, "False", "false"], "false"),
        ([0.5, "0.5"], "0.5"),
        (["01"], "01"),  # a code, not a number as it would be written
        (["Good", " Good\n"], "Good"),
        (["None"], "None"),  # the name of a class in data sets of hate speech
        ([None, "", "  ", float("nan"), "nan", "NaN"], None),
    ],
)
def test_what_is_written_in_other_ways_is_the_same_label(values: list[Any], label: str | None) -> None:
    assert [label_text(value) for value in values] == [label] * len(values)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.decimals(), st.none()))
def test_a_label_read_again_is_the_same_label(value: Any) -> None:
    label = label_text(value)
    assert label_text(label) == label
    if label is not None:
        assert plain(label) == plain(str(label))


@given(st.integers(-(10**6), 10**6))
def test_a_whole_number_is_one_label_in_every_file(value: int) -> None:
    forms = [value, float(value), str(value), f"{value}.0", f" {value} "]
    assert {label_text(form) for form in forms} == {str(value)}
    assert number(str(value)) == value
    assert label_text(bool(value)) not in {label_text(form) for form in forms}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (["a"], "several classes"),
        ([1, 0], "0 and 1"),
        ("[1, 0]", "0 and 1"),
        ("['a', 'b']", "several classes"),
        ('["a"]', "several classes"),
        ("(1, 2)", "several classes"),
        ("{'a', 'b'}", ""),
        ([0.2, 0.8], "soft labels"),
        ("[0.2 0.8]", "soft labels"),
        ('{"a": 0.5}', "soft labels"),
        ({"a": "b"}, "JSON object"),
        ([], "a list"),
        ("[]", "a list"),
        ("[a, b]", "several classes"),
        (datetime.datetime(2020, 1, 1), "date"),
        (b"x", "bytes"),
        ("2,17", "decimal comma"),
        ("2;17", "several classes"),
        ("0.1 0.9", "soft labels"),
        ("0.1;0.9", "soft labels"),
        ("0|1|1", "0 and 1"),
        ("O B-PER I-PER", "tags"),
    ],
)
def test_what_cannot_be_a_class_says_what_it_looks_like(value: Any, told: str) -> None:
    found = no_class(value)
    assert found is not None
    assert told in found


@pytest.mark.parametrize(
    "value", ["a", "(1)", "[UNK]", "a (b)", "[a] b [c]", 1, 1.5, True, None, "{", "a b", "O", "no, 1"]
)
def test_what_can_be_a_class_is_left_alone(value: Any) -> None:
    assert no_class(value) is None


@given(st.text())
def test_no_text_is_too_odd_to_be_looked_at(text: str) -> None:
    no_class(text)
    no_class(f"[{text}]")


def test_labels_that_would_count_as_one_are_found() -> None:
    assert alike(["0.5", "0.50"]) == ("0.5", "0.50")
    assert alike(["Out of-scope", "in", "out_of_scope"]) == ("Out of-scope", "out_of_scope")
    assert alike(["1", "2", "-1", "yes", "no"]) is None
