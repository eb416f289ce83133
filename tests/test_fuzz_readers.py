"""Readers of strangers' files, on mutated and random ones: they take it or refuse it, quickly.

The readers and seeds are those of scripts/fuzz.py, which tries many more.
"""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import fuzz

READERS = fuzz.readers()
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_taken(name):
    for seed in READERS[name].seeds:
        assert fuzz.try_one(READERS[name], seed)[0] == "taken"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
@QUICK
@given(data=st.data())
def test_mutated_files(name, data):
    reader = READERS[name]
    content = data.draw(st.sampled_from(reader.seeds))
    for _ in range(data.draw(st.integers(1, 3))):
        content = fuzz.mutate(content, data.draw(st.randoms(use_true_random=False)))
    outcome, _ = fuzz.try_one(reader, content)
    assert outcome in ("taken", "refused")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
@QUICK
@given(content=st.binary(max_size=300))
def test_random_bytes(name, content):
    assert fuzz.try_one(READERS[name], content)[0] in ("taken", "refused")


def test_other_exceptions_and_slow_inputs_are_failures():
    def read(content, folder):
        if content == b"slow":
            began = fuzz.time.process_time()
            while fuzz.time.process_time() - began < 0.02:
                pass
        elif content:
            raise KeyError("x")

    reader = fuzz.Reader([b"abc"], read, ValueError)
    assert fuzz.try_one(reader, b"") == ("taken", pytest.approx(0, abs=0.1))
    assert fuzz.try_one(reader, b"a")[0] == "KeyError: 'x'"
    before, fuzz._SECONDS = fuzz._SECONDS, 0.01
    try:
        assert fuzz.try_one(reader, b"slow")[0].startswith("took")
    finally:
        fuzz._SECONDS = before
    count = fuzz.fuzz(reader, 20, 0)
    assert count.taken + count.refused + len(count.failures) == 20 and count.failures


def test_the_same_seed_tries_the_same_inputs():
    assert fuzz.mutate(b"abcdef" * 9, random.Random(3)) == fuzz.mutate(b"abcdef" * 9, random.Random(3))
