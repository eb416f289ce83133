"""`fera merge`: a base with an adapter in its weights, as diffusers loads it."""

import json

import pytest
import torch
from adapter_cases import PROMPTS, draw, make_pipeline, write_adapter
from diffusers import DiffusionPipeline

import fera
from fera.cli.main import main
from fera.export.pipeline import RECORD

GATE = [0.2, 0.3, 0.5]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_pipeline("sd").save_pretrained(folder / "base")
    write_adapter("sd", folder / "ink")
    return folder


def run(base, output, *more):
    words = ["merge", str(base / "ink"), "--base", str(base / "base"), "--output", str(output)]
    return main([*words, *more])


def test_what_is_written_draws_as_the_merged_adapter_and_needs_no_fera(base, tmp_path, capfd):
    assert run(base, tmp_path / "out", "--gate", "0.2,0.3,0.5", "--weight", "0.7", "--prompts", PROMPTS[0]) == 0
    said = capfd.readouterr().err
    assert "of what the adapter changes" in " ".join(said.split())
    pipe = DiffusionPipeline.from_pretrained(base / "base")
    fera.load_adapter(pipe, base / "ink")
    fera.set_adapters(pipe, "default", 0.7)
    fera.merge(pipe, GATE)
    merged = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(draw(merged), draw(pipe))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["gate"] == pytest.approx(GATE) and record["weight"] == 0.7
    assert 0 < record["gap"]["change"] and record["gap"]["prompts"] == PROMPTS[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_replaced_and_nothing_half_written(base, tmp_path, capfd, monkeypatch):
    (tmp_path / "there").mkdir()
    assert run(base, tmp_path / "there", "--gate", "uniform") == 2
    assert "exists already; give another --output" in " ".join(capfd.readouterr().err.split())
    assert run(base, tmp_path / "out") == 2
    assert "say which gate" in capfd.readouterr().err
    assert run(base, tmp_path / "out", "--gate", "0.5,0.5") == 2
    assert "has 3 weights" in " ".join(capfd.readouterr().err.split())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiffusionPipeline, "save_pretrained", full)
    assert run(base, tmp_path / "out", "--gate", "uniform") == 2
    assert "No space left on device" in " ".join(capfd.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
