"""Patterns for dotted names: ends, beginnings, ranges; folding is the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fera.support.patterns import PatternError, ending, folded, inside

NAMES = [
    "conv1",
    "blocks.0.conv1",
    "blocks.0.my_conv1",
    "blocks.7.ff.net.0.proj",
    "blocks.8.ff.net.2",
    "blocks.18.to_q",
]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    {
        "conv1": [0, 1],
        "*conv1": [0, 1, 2],
        "*": [0, 1, 2, 3, 4, 5],
        "blocks.7-8.*": [3, 4],
        "blocks.8-.*": [4, 5],
        "blocks.1-8.to_q": [],
        "net.0-2.proj": [3],
        "net.*": [3, 4],
        "blocks.7-18.ff.*.0-2": [4],
        "ff": [],
    }.items(),
)
def test_ends(pattern, matches):
    assert [place for place, name in enumerate(NAMES) if ending(pattern).fullmatch(name)] == matches


@pytest.mark.parametrize(
    ("pattern", "matches"),
    {
        "0-7": [1, 2, 3],
        "8-": [4, 5],
        "8": [4],
        "blocks": [1, 2, 3, 4, 5],
        "blocks.7-8": [3, 4],
        "block*.18": [5],
        "ff": [],
        "2": [],  # not the first number of any name
    }.items(),
)
def test_beginnings(pattern, matches):
    assert [place for place, name in enumerate(NAMES) if inside(pattern).fullmatch(name)] == matches


@pytest.mark.parametrize(
    "pattern", ["", "a b", "to_q|to_k", "blocks.[0-3].to_q", "(a)", "a..b", ".", r"a\.b", "9-3.a", "0-1000.a"]
)
def test_what_is_none(pattern):
    with pytest.raises(PatternError, match="no name or pattern|no range of numbers"):
        ending(pattern)


names = st.lists(st.from_regex(r"[a-c](\.[a-c0-9]{1,2}){0,3}", fullmatch=True), max_size=12)


@given(names)
def test_folded_names_match_what_they_stand_for_and_nothing_else(names):
    canonical = [
        name for name in names if not any(part.isdigit() and str(int(part)) != part for part in name.split("."))
    ]
    patterns = folded(canonical)
    assert len(patterns) <= len(set(canonical))

    def stands_for(pattern):
        return {name for name in canonical if ending(pattern).fullmatch(name) and name.count(".") == pattern.count(".")}

    assert set().union(*map(stands_for, patterns)) == set(canonical)
    assert sum(len(stands_for(pattern)) for pattern in patterns) == len(set(canonical))  # each by one alone


def test_folding():
    assert folded([f"blocks.{block}.{layer}" for block in (0, 1, 2, 4) for layer in ("a", "b.0")]) == [
        "blocks.0-2.a",
        "blocks.4.a",
        "blocks.0-2.b.0",
        "blocks.4.b.0",
    ]
    assert folded([]) == []
