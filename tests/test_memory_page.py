"""docs/memory.md quotes what `python -m benchmarks.fits` prints."""

from pathlib import Path

from benchmarks.fits import table


def test_the_table_of_what_fits_is_current():
    assert table() in (Path(__file__).parents[1] / "docs" / "memory.md").read_text(encoding="utf-8")
