"""Fingerprints: one base stays itself through adapters and casts, another base is told apart."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from tuner_cases import CASES, config

from fera import FeraError
from fera.tuner.fingerprint import check_fingerprint, fingerprint


def other_weights(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_two_builds_of_one_base_have_one_fingerprint(case):
    first = fingerprint(case.model())
    assert first == fingerprint(case.model())
    assert first["class"] == type(case.model()).__name__
    assert first["tensors"] == sum(p.ndim >= 2 for p in case.model().parameters())
    assert first["sample"] and all(first["sample"].values())


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_it_survives_json(case):
    model = case.model()
    check_fingerprint(model, json.loads(json.dumps(fingerprint(model))))


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("adapter", [config(), LoraConfig(r=2, target_modules=["to_q", "to_k"])])
def test_adapters_do_not_show(case, adapter):
    model = case.model()
    before = fingerprint(model)
    get_peft_model(model, adapter)
    assert fingerprint(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_cast_base_is_the_same_base(case, dtype):
    expected = fingerprint(case.model())
    check_fingerprint(case.model().to(dtype), expected)
    check_fingerprint(case.model(), fingerprint(case.model().to(dtype)))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_other_weights_are_another_base(case):
    with pytest.raises(FeraError, match="another base: same architecture, but the weights differ by"):
        check_fingerprint(other_weights(case.model()), fingerprint(case.model()))


def test_weights_that_drift_a_little_are_the_same_base(tiny_unet):
    model, expected = tiny_unet(), fingerprint(tiny_unet())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    check_fingerprint(model, expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    with pytest.raises(FeraError, match="differ by 6%"):
        check_fingerprint(model, expected)


def test_other_layers_are_another_base(tiny_unet):
    with pytest.raises(FeraError, match="this base has .* other layers"):
        check_fingerprint(tiny_unet(layers_per_block=2), fingerprint(tiny_unet()))


def test_another_class_is_another_base(tiny_unet, tiny_sd3_transformer):
    with pytest.raises(FeraError, match="trained on a UNet2DConditionModel, but this base is a SD3Transformer2DModel"):
        check_fingerprint(tiny_sd3_transformer(), fingerprint(tiny_unet()))


def test_weights_that_cannot_be_read_are_passed_over(tiny_unet):
    expected = fingerprint(tiny_unet())
    with torch.device("meta"):
        ghost = tiny_unet()
    assert not any(fingerprint(ghost)["sample"].values())
    check_fingerprint(ghost, expected)
    check_fingerprint(tiny_unet(), fingerprint(ghost))


class OneWeight(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)


# FLUX.1's feed-forward layers and SD 1.5's widest convolutions: beyond 2^24 entries float32 skips places.
@pytest.mark.parametrize("shape", [(3072, 12288), (1280, 2560, 3, 3), (1, 2**24 + 1), (1, 1)])
def test_places_in_large_tensors(shape):
    base = OneWeight(torch.full((1,), 2.0).expand(shape))
    assert fingerprint(base)["sample"] == {"weight": [2.0] * 4}


def test_places_are_spread_evenly_from_the_first_to_the_last():
    assert fingerprint(OneWeight(torch.arange(10_000.0).view(100, 100)))["sample"] == {"weight": [0, 3333, 6666, 9999]}
