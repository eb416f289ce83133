"""`fera models`, and the page that it writes."""

import re
from pathlib import Path

import pytest
from peft import LoraConfig, inject_adapter_in_model
from tiny import make_unet
from torch import nn

import fera
from fera import models as denoisers
from fera.cli.main import main
from fera.models import registry, table
from fera.models.families import FAMILIES, MODELS
from fera.models.layers import adaptable, lora_size
from fera.pipelines.skeletons import skeletons

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    page = ROOT / "docs" / "models.md"
    assert page.read_text(encoding="utf-8") == table.to_markdown(), "run: fera models --markdown > docs/models.md"


@pytest.mark.parametrize("command", ["models", "denoisers"])
def test_markdown_prints_the_page(capsys, command):
    assert main([command, "--markdown"]) == 0
    assert capsys.readouterr().out == table.to_markdown()


def test_the_page_says_which_pipelines_train():
    page = table.to_markdown()
    rows = dict(re.findall(r"^\| .*\| `(\w+)` \| `\w+` \| (yes)? ?\| yes \|$", page, flags=re.M))
    assert {name for name, trains in rows.items() if trains} == set(FAMILIES)
    assert set(rows) == {name for entry in denoisers.known().values() for name in entry.pipelines}


def test_the_readme_quotes_the_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Models") : readme.index("## Does it help?")]
    assert [model for model in MODELS.values() if model not in section] == []
    drawn = {name for row in table.rows() for name in row.pipelines}
    assert f"{len(FAMILIES)} pipelines train" in section and f"{len(drawn)} draw" in section


def test_every_class_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models"]) == 0
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


def lines_of(capsys, *arguments):
    assert main(["models", *arguments]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_layers_of_a_class(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = lines_of(capsys, "FluxTransformer2DModel", "--blocks", "8-23", "--exclude_modules", "add_*_proj")
    assert "transformer_blocks.8-18.attn.to_q              3072 to 3072   yes" in lines
    assert "single_transformer_blocks.24-37.attn.to_v      3072 to 3072" in lines
    assert lines[-1] == "FluxTransformer2DModel: 179 of 502 layers adapted; 1,849,344 parameters for each rank"


def test_the_layers_of_a_base(capsys, tiny_sd3_dir):
    lines = lines_of(capsys, str(tiny_sd3_dir), "--target_modules", "all-linear", "--blocks", "transformer_blocks")
    assert lines[-1].startswith("transformer: SD3Transformer2DModel: 25 of 33 layers adapted; ")
    assert not any(line.endswith("yes") for line in lines if not line.startswith("transformer_blocks."))


def test_what_is_marked_is_what_trains(tiny_sd_dir):
    """The number of parameters is that of the LoRA."""
    denoiser = skeletons(str(tiny_sd_dir))["unet"]
    settings = fera.choose_layers(denoiser, ["*"], exclude_modules=["conv_in"])
    expected = sum(lora_size(adaptable(denoiser)[name]) for name in settings["target_modules"])
    model = inject_adapter_in_model(LoraConfig(r=1, **settings), make_unet())
    assert expected == sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)


def test_a_pipeline_or_a_part_of_a_name_finds_its_class(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert any(line.startswith("WanTransformer3DModel: ") for line in lines_of(capsys, "WanPipeline"))
    printed = "\n".join(lines_of(capsys, "qwen"))
    assert "QwenImageTransformer2DModel" in printed and "QwenImage21Transformer2DModel" in printed
    assert "layers adapted" not in printed  # of several


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no model with 'nothing' in its name"),
        ("HunyuanDiT2DModel", "the defaults of HunyuanDiT2DModel make no whole model; name a base"),
        ("./nowhere/at/all", "does not exist"),
    ],
)
def test_what_there_is_not(capsys, name, message):
    assert main(["models", name]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_patterns_that_match_nothing_name_the_flag(capsys):
    assert main(["models", "SD3Transformer2DModel", "--blocks", "30-40"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "--blocks that match nothing: 30-40; SD3Transformer2DModel has:" in message
    assert "transformer_blocks.0-17" in message
