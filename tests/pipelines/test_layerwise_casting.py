"""Bases that diffusers keeps in 8 bits and casts layer by layer: the router and the experts are not rounded."""

import pytest
import torch
from adapter_cases import TARGETS, add_adapter, denoiser_of, draw, make_pipeline, same, write_adapter
from diffusers.hooks import apply_layerwise_casting
from peft import LoraConfig
from safetensors.torch import load_file

import fera
from fera import FeraError
from fera.adapters.file import WEIGHTS
from fera.tuner.fingerprint import check_fingerprint, fingerprint

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def cast(pipe, storage=torch.float8_e4m3fn, compute=torch.float32):
    denoiser_of(pipe).enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
    return pipe


def rounded(pipe, storage=torch.float8_e4m3fn):
    """A pipeline whose base has the weights that casting leaves, in full precision: the oracle of what it computes."""
    other = cast(make_pipeline("sd" if hasattr(pipe, "unet") else "sd3"), storage)
    held = dict(denoiser_of(other).named_parameters())
    with torch.no_grad():
        for name, parameter in denoiser_of(pipe).named_parameters():
            parameter.copy_(held[name].to(parameter.dtype))
    return pipe


@pytest.fixture(params=["sd", "sd3"])
def kind(request):
    return request.param


@pytest.mark.parametrize("order", ["cast first", "load first"])
@pytest.mark.parametrize("storage", FP8)
def test_routed_by_the_router_as_it_was_saved(kind, order, storage, tmp_path):
    folder = write_adapter(kind, tmp_path / "ink", seed=1)
    reference = rounded(make_pipeline(kind), storage)
    fera.load_adapter(reference, folder, allow_other_base=True)
    with fera.trace(reference) as expected_steps:
        expected = draw(reference)
    pipe = make_pipeline(kind)
    if order == "cast first":
        cast(pipe, storage)
    fera.load_adapter(pipe, folder)
    if order == "load first":
        cast(pipe, storage)
    with fera.trace(pipe) as steps:
        drawn = draw(pipe)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    for step, expected_step in zip(steps, expected_steps, strict=True):
        torch.testing.assert_close(step.gates, expected_step.gates, rtol=1e-4, atol=1e-5)
    fera.save_adapter(pipe, tmp_path / "again")
    assert same(load_file(tmp_path / "again" / WEIGHTS), load_file(folder / WEIGHTS))


@pytest.mark.parametrize("order", ["cast first", "load first"])
def test_computed_in_half_precision(kind, order, tmp_path):
    """Far from the full precision's latents by bfloat16's rounding alone."""
    folder = write_adapter(kind, tmp_path / "ink", seed=1)
    reference = rounded(make_pipeline(kind)).to(torch.bfloat16)
    fera.load_adapter(reference, folder, allow_other_base=True)
    expected = draw(reference).float()
    pipe = make_pipeline(kind).to(torch.bfloat16)
    if order == "cast first":
        cast(pipe, compute=torch.bfloat16)
    fera.load_adapter(pipe, folder)
    if order == "load first":
        cast(pipe, compute=torch.bfloat16)
    drawn = draw(pipe).float()
    assert drawn.isfinite().all() and (drawn - expected).norm() / expected.norm() < 0.03
    fera.save_adapter(pipe, tmp_path / "again")
    saved, before = load_file(tmp_path / "again" / WEIGHTS), load_file(folder / WEIGHTS)
    held = {name: tensor if "router" in name else tensor.to(torch.bfloat16) for name, tensor in before.items()}
    assert same(saved, held), "the router in full, the experts in the pipeline's precision"
    fera.set_adapters(pipe, [])
    assert (draw(pipe).float() - expected).norm() / expected.norm() > 0.06


def test_the_router_is_left_alone_whatever_is_to_be_cast():
    for settings in ({"skip_modules_pattern": None}, {"skip_modules_pattern": ("norm",)}):
        unet = add_adapter(make_pipeline("sd")).unet
        before = {name: parameter.clone() for name, parameter in unet.fera.named_parameters()}
        apply_layerwise_casting(unet, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16, **settings)
        assert same(before, dict(unet.fera.named_parameters()))


@pytest.mark.parametrize("storage", FP8)
def test_a_cast_base_is_the_same_base(kind, storage):
    expected = fingerprint(denoiser_of(make_pipeline(kind)))
    base = denoiser_of(cast(make_pipeline(kind), storage))
    check_fingerprint(base, expected)
    check_fingerprint(denoiser_of(make_pipeline(kind)), fingerprint(base))
    check_fingerprint(base, fingerprint(denoiser_of(make_pipeline(kind)).to(torch.bfloat16)))


def test_another_base_is_told_apart_in_8_bits_too(kind):
    expected = fingerprint(denoiser_of(make_pipeline(kind)))
    other = make_pipeline(kind)
    with torch.no_grad():
        for parameter in denoiser_of(other).parameters():
            parameter.mul_(1.2)
    cast(other)
    with pytest.raises(FeraError, match="the weights differ by"):
        check_fingerprint(denoiser_of(other), expected)
    with pytest.raises(FeraError, match="the weights differ by"):
        check_fingerprint(denoiser_of(make_pipeline(kind)), fingerprint(denoiser_of(other)))


def test_merging_into_8_bits_is_refused():
    pipe = add_adapter(make_pipeline("sd"))
    cast(pipe)
    drawn = draw(pipe)
    with pytest.raises(FeraError, match="cannot merge into unet.*float8_e4m3fn"):
        fera.merge(pipe, "uniform")
    assert torch.equal(draw(pipe), drawn)


def test_beside_a_plain_lora(tmp_path):
    folder = write_adapter("sd", tmp_path / "ink", seed=1)
    pipe = make_pipeline("sd")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False), "plain")
    cast(pipe)
    fera.load_adapter(pipe, folder)
    alone = draw(pipe)
    fera.set_adapters(pipe, ["default", "plain"], [1.0, 0.0])
    torch.testing.assert_close(draw(pipe), alone, rtol=1e-4, atol=1e-5)
