"""Which argument is the latent: real denoisers called by position and by keyword, registration, errors."""

import pytest
import torch
from torch import nn

from fera import FeraError, register_denoiser
from fera import models as denoisers
from fera.models import registry


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_DENOISERS", denoisers.known())


class Toy(nn.Module):
    def forward(self, noise_level, canvas, hint=None):
        return canvas


def test_by_position_and_by_keyword(tiny_unet, tiny_sd3_transformer):
    latent, text, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32), torch.randn(2, 64)
    unet, transformer = tiny_unet(), tiny_sd3_transformer()
    reader = denoisers.CallReader(unet)
    for args, kwargs in [
        ((latent, 7, text), {}),
        ((latent, 7), {"encoder_hidden_states": text}),
        ((latent,), {"timestep": 7, "encoder_hidden_states": text}),
        ((), {"encoder_hidden_states": text, "timestep": 7, "sample": latent}),
    ]:
        assert torch.equal(reader.latent(unet, args, kwargs), latent)
        assert reader.timestep(args, kwargs) == 7
    reader = denoisers.CallReader(transformer)
    for args, kwargs in [
        ((latent, text, pooled, 7), {}),
        ((), {"hidden_states": latent, "encoder_hidden_states": text, "timestep": 7}),
    ]:
        assert torch.equal(reader.latent(transformer, args, kwargs), latent)
        assert reader.timestep(args, kwargs) == 7


def test_channels_of_conditions_are_left_out(tiny_unet):
    inpainting = tiny_unet(in_channels=9)
    sample = torch.randn(2, 9, 8, 8)
    latent = denoisers.CallReader(inpainting).latent(inpainting, (sample, 7, None), {})
    assert torch.equal(latent, sample[:, :4])


def test_a_denoiser_that_also_predicts_a_variance_shows_all_its_latent(tiny_sd3_transformer):
    transformer = tiny_sd3_transformer(out_channels=8)
    latent = torch.randn(1, 4, 8, 8)
    assert torch.equal(denoisers.CallReader(transformer).latent(transformer, (latent,), {}), latent)


def test_a_call_without_a_latent_is_an_error(tiny_unet):
    unet = tiny_unet()
    with pytest.raises(FeraError, match="UNet2DConditionModel was called without 'sample'.*keywords: timestep"):
        denoisers.CallReader(unet).latent(unet, (), {"timestep": 3})
    with pytest.raises(FeraError, match="keywords: none"):
        denoisers.CallReader(unet).latent(unet, (), {})
    with pytest.raises(FeraError, match="without 'sample'"):
        denoisers.CallReader(unet).latent(unet, (None, 3), {})


def test_a_missing_timestep_is_none(tiny_unet):
    assert denoisers.CallReader(tiny_unet()).timestep((torch.zeros(1, 4, 8, 8),), {}) is None


def test_an_unknown_class_is_an_error_that_says_what_to_do():
    with pytest.raises(
        FeraError,
        match=r"which argument of Toy is its latent.*SD3Transformer2DModel, .*UNet2D.*register_denoiser\(Toy",
    ):
        denoisers.CallReader(Toy())
    assert not denoisers.is_known(Toy())


def test_a_class_of_ones_own():
    register_denoiser(Toy, latent="canvas", target_modules=["to_q"], timestep="noise_level")
    latent = torch.randn(1, 4, 8, 8)
    reader = denoisers.CallReader(Toy())
    assert torch.equal(reader.latent(Toy(), (3, latent), {}), latent)
    assert reader.timestep((3, latent), {}) == 3
    assert denoisers.find(Toy()).target_modules == ("to_q",)
    assert denoisers.is_known(Toy())


def test_a_function_of_the_call_finds_the_latent():
    register_denoiser(Toy, latent=lambda call: call["canvas"] - call["hint"])
    latent, hint = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.equal(denoisers.CallReader(Toy()).latent(Toy(), (3, latent), {"hint": hint}), latent - hint)


def test_a_subclass_follows_its_parent(tiny_unet):
    class Mine(type(tiny_unet())):
        pass

    unet = tiny_unet()
    unet.__class__ = Mine
    assert denoisers.find(unet) is denoisers.known()["UNet2DConditionModel"]


def test_registering_an_argument_that_does_not_exist_is_an_error():
    with pytest.raises(FeraError, match="Toy.forward has no argument 'sample'; it has: noise_level, canvas, hint"):
        register_denoiser(Toy, latent="sample")
    assert not denoisers.is_known(Toy())
