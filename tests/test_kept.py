"""What an earlier tree has written: adapters load, runs resume, caches are found."""

import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from listeners import train
from peft import PeftModel
from safetensors.torch import load_file

import fera
from fera.adapters.file import open_adapter
from fera.adapters.inspection import describe
from fera.comfyui.adapter import read_adapter
from fera.training import load_config

KEPT = Path(__file__).parent / "kept" / "run-of-0.1.0.zip"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The unpacked folder, as the working directory: its configuration has relative paths."""
    with zipfile.ZipFile(KEPT) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_to_the_same_adapter(kept):
    before = {path.name for path in (kept / "run" / "cache").glob("latent-*")}
    assert before
    train(load_config(kept / "config.toml"), resume=True)
    assert {path.name for path in (kept / "run" / "cache").glob("latent*")} == before, "nothing is encoded anew"
    close(open_adapter("run/adapter").tensors(), open_adapter("finished").tensors())


def test_an_adapter_loads_and_is_saved_as_of_today(kept):
    """The same tensors; the names of the experts' sides have changed since."""
    pipe = StableDiffusionPipeline.from_pretrained("base")
    fera.load_adapter(pipe, "finished")
    with fera.trace(pipe) as steps:
        pipe("a red rocket", num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0))
    assert len(steps) == 2 and steps[0].gates.shape[1] == 2
    fera.save_adapter(pipe, "again")
    again, finished = (open_adapter(folder).tensors() for folder in ("again", "finished"))
    assert again.keys() == finished.keys() and all(torch.equal(again[name], finished[name]) for name in again)
    names = {folder: load_file(f"{folder}/adapter_model.safetensors").keys() for folder in ("again", "finished")}
    assert any(".lora_A." in name for name in names["finished"]) and not any("lora" in name for name in names["again"])
    versions = {folder: describe(folder)["file"]["format_version"] for folder in names}
    assert versions == {"finished": 1, "again": 2}


def test_peft_loads_an_adapter(kept):
    unet = StableDiffusionPipeline.from_pretrained("base").unet
    state = PeftModel.from_pretrained(unet, "finished").state_dict()
    for name, tensor in open_adapter("finished").tensors().items():
        if ".lora_" in name:
            assert torch.equal(state[name.replace(".weight", ".default.weight")], tensor)


def test_comfyui_reads_an_adapter(kept):
    """Of the same layers as one saved today, without PEFT."""
    pipe = StableDiffusionPipeline.from_pretrained("base")
    fera.load_adapter(pipe, "finished")
    fera.save_adapter(pipe, "again")
    old, new = read_adapter("finished").layers, read_adapter("again").layers
    assert old.keys() == new.keys()
    assert all(torch.equal(old[path].down, new[path].down) and torch.equal(old[path].up, new[path].up) for path in old)


def test_an_adapter_is_described(kept):
    found = describe("finished")
    assert found["settings"]["num_experts"] == 2 and found["settings"]["r"] == 2
    assert found["base"]["class"] == "UNet2DConditionModel"
