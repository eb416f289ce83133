"""Promises of docs/reliability.md name tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_promise_names_a_test_that_exists():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    promises = [row for row in rows if "test_" in row]
    assert len(promises) > 30
    for file, name in re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", "\n".join(promises)):
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), f"{file}::{name}"
    tables = PAGE.read_text(encoding="utf-8").split("## Files from strangers")[0]
    for row in re.findall(r"^\|.*\|$", tables, flags=re.M):
        assert "::test_" in row or set(row) <= set("|-") or row.endswith("| test |"), row
