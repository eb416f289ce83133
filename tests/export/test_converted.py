"""Experts of other schemes as a plain LoRA."""

import copy
import json

import pytest
import torch
from adapter_cases import PROMPTS, make_pipeline
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    inject_adapter_in_model,
)
from safetensors import safe_open
from safetensors.torch import load_file

import fera
from fera import FeraConfig, FeraError
from fera.export.gap import predict_with
from fera.export.writing import export_lora

GATE = [0.2, 0.3, 0.5]
TARGETS = ["to_q", "to_out.0"]
SCHEMES = {
    "LoHa": LoHaConfig(r=2),
    "LoKr": LoKrConfig(r=2, decompose_both=True),
    "OFT": OFTConfig(r=4, oft_block_size=0),
    "BOFT": BOFTConfig(boft_block_size=4),
    "DoRA": LoraConfig(r=2, use_dora=True),
    "VeRA": VeraConfig(r=8),
}


def adapted(scheme, folder, targets=TARGETS):
    """A pipeline with experts of a scheme that are not at their start, and their folder."""
    pipe = make_pipeline("sd")
    inject_adapter_in_model(FeraConfig(expert=scheme, target_modules=targets), pipe.unet, "default")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in pipe.unet.named_parameters():
        if "fera_experts" in name and "base_layer" not in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    fera.save_adapter(pipe, folder)
    return pipe


CALL = (
    (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 500),
    {"encoder_hidden_states": torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))},
)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_all_of_its_energy_is_the_adapter_itself(scheme, tmp_path):
    """Under the gate that the LoRA has, and read back by diffusers."""
    pipe = adapted(scheme, tmp_path / "adapter")
    with torch.no_grad():
        expected = predict_with(pipe.unet, "default", torch.tensor(GATE), CALL)
        base = make_pipeline("sd").unet(*CALL[0], **CALL[1]).sample
    stock = make_pipeline("sd")
    exported = export_lora(tmp_path / "adapter", tmp_path / "plain", GATE, pipe=stock, energy=1.0)
    assert exported.cut < 1e-4 and not exported.is_exact
    stock.load_lora_weights(tmp_path / "plain")
    with torch.no_grad():
        drawn = stock.unet(*CALL[0], **CALL[1]).sample
    assert (drawn - expected).norm() < 1e-3 * (expected - base).norm()


def test_what_is_cut_is_measured(tmp_path):
    adapted(SCHEMES["LoHa"], tmp_path / "adapter")
    cuts, sizes = [], []
    for energy in (0.5, 0.9, 0.99):
        exported = export_lora(
            tmp_path / "adapter", tmp_path / f"{energy}.safetensors", GATE, pipe=make_pipeline("sd"), energy=energy
        )
        (file,) = exported.files
        cuts.append(exported.cut)
        sizes.append(sum(tensor.numel() for tensor in load_file(file).values()))
        assert exported.cut**2 <= 1 - energy + 1e-6
        with safe_open(file, "pt") as opened:
            assert json.loads(opened.metadata()["fera_export"])["cut"] == exported.cut
    assert cuts == sorted(cuts, reverse=True) and sizes == sorted(sizes) and len(set(sizes)) == 3


def test_convolutions_and_a_measured_gap(tmp_path):
    adapted(SCHEMES["LoKr"], tmp_path / "adapter", ["to_q", "conv1"])
    pipe = make_pipeline("sd")
    before = copy.deepcopy(pipe.unet.state_dict())
    exported = export_lora(
        tmp_path / "adapter", tmp_path / "plain.safetensors", "uniform", format="kohya", pipe=pipe, prompts=PROMPTS[:1]
    )
    assert exported.gap is not None and 0 <= exported.gap.change < 1
    tensors = load_file(exported.files[0])
    assert any(tensor.ndim == 4 for key, tensor in tensors.items() if "conv1.lora_down" in key)
    assert before.keys() == pipe.unet.state_dict().keys()
    assert all(torch.equal(tensor, pipe.unet.state_dict()[name]) for name, tensor in before.items())


def test_what_no_lora_holds(tmp_path):
    adapted(IA3Config(), tmp_path / "scaled")
    with pytest.raises(FeraError, match="change the bias of .*, which no LoRA holds"):
        export_lora(tmp_path / "scaled", tmp_path / "plain", GATE, pipe=make_pipeline("sd"))
    adapted(SCHEMES["LoHa"], tmp_path / "adapter")
    with pytest.raises(FeraError, match="nearly the same, give the base"):
        export_lora(tmp_path / "adapter", tmp_path / "plain", GATE)
    with pytest.raises(FeraError, match="energy must be above 0"):
        export_lora(tmp_path / "adapter", tmp_path / "plain", GATE, pipe=make_pipeline("sd"), energy=0.0)
    assert not (tmp_path / "plain").exists()
