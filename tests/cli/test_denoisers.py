"""`fera denoisers`, and the page that it writes."""

import re
from pathlib import Path

import pytest
from torch import nn

import fera
from fera import models as denoisers
from fera.cli.main import main
from fera.models import registry, table
from fera.models.families import FAMILIES

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    page = ROOT / "docs" / "denoisers.md"
    assert page.read_text(encoding="utf-8") == table.to_markdown(), "run: fera denoisers --markdown > docs/denoisers.md"


def test_markdown_prints_the_page(capsys):
    assert main(["denoisers", "--markdown"]) == 0
    assert capsys.readouterr().out == table.to_markdown()


def test_the_page_lists_the_pipelines_that_train():
    page = table.to_markdown()
    section = page[page.index("## Pipelines that train") : page.index("## What works with a limit")]
    assert set(re.findall(r"`(\w+Pipeline)`", section)) == set(FAMILIES)


def test_every_class_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["denoisers"]) == 0
    printed = capsys.readouterr().out
    for name, entry in denoisers.known().items():
        assert name in printed and all(pipeline in printed for pipeline in entry.pipelines)


@pytest.mark.parametrize("row", table.rows(), ids=lambda row: row.name)
def test_every_row_says_what_it_is(row):
    assert row.latent and row.layout and row.target_modules and row.pipelines
    assert "|" not in row.layout + row.left_out


def test_the_layout_comes_from_its_function():
    (row,) = [row for row in table.rows() if row.name == "FluxTransformer2DModel"]
    assert row.layout.startswith("(B, L, 4 C)") and "Raises" not in row.left_out


def test_a_pipeline_that_does_not_work_is_listed_with_the_reason(monkeypatch):
    monkeypatch.setattr(table, "NOT_SUPPORTED", {"OddPipeline": "its latent is a graph"})
    assert table.to_markdown().endswith("| pipeline | why |\n|---|---|\n| `OddPipeline` | its latent is a graph |\n")


def test_what_is_registered_by_a_function_has_a_row_too(monkeypatch):
    monkeypatch.setattr(registry, "_DENOISERS", {})

    class Toy(nn.Module):
        def forward(self, canvas):
            return canvas

    fera.register_denoiser(Toy, latent=lambda call: call["canvas"])
    assert [row.name for row in table.rows()] == ["Toy"]
    assert "| `Toy` |" in table.to_markdown()
