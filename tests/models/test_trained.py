"""Every family, against its own pipeline: the same latent, noise level and caption give what the scheduler gets."""

import pytest
import torch
from peft import inject_adapter_in_model
from trained_calls import CAPTION, CPU, Recorder, at, draw, pictures, told
from trained_cases import CASES
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.families import family_of
from fera.training.start.checkpointing import checkpoint_gradients
from models import chroma, ernie_image

pytest_plugins = ("trained_calls",)


@torch.no_grad()
def test_a_prediction_is_what_the_scheduler_gets(pipe, case):
    with Recorder(pipe) as seen:
        draw(pipe, case)
    assert len(seen.outputs) == len(seen.calls) == 2
    family = family_of(pipe)
    conditions = told(pipe, case, [CAPTION])
    for latent, level, output in zip(seen.latents, seen.levels, seen.outputs, strict=True):
        latent = latent[: len(output)]  # without the copy of those that guide in any case
        prediction = family.predict(seen.denoiser, latent, level, conditions)
        assert prediction.shape == latent.shape and output.std() > 1e-3
        torch.testing.assert_close(prediction, output, rtol=1e-4, atol=1e-5)


def test_training_mode_changes_nothing(pipe, case):
    """With gradients, the denoiser in training mode, its activations computed again."""
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    conditions = told(pipe, case, [CAPTION])
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    with torch.no_grad():
        expected = family.predict(denoiser, noisy, at(pipe, 0.5), conditions)
    denoiser.train()
    if not family.no_checkpointing:
        checkpoint_gradients(denoiser, family)
    prediction = family.predict(denoiser, noisy, at(pipe, 0.5), conditions)
    torch.testing.assert_close(prediction.detach(), expected, rtol=1e-4, atol=1e-5)
    prediction.square().mean().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in denoiser.parameters())


def test_checkpointing_that_diffusers_does_wrongly_is_refused():
    pipe = chroma.make_pipeline()
    with pytest.raises(FeraError, match="gradient_checkpointing is set, but diffusers 0.42 forgets the mask"):
        checkpoint_gradients(pipe.transformer, family_of(pipe))


@pytest.mark.parametrize("name", ["kandinsky5", "qwen-image-2.1", "hunyuan-image"])
def test_recomputed_activations_see_the_gates_of_their_forward(name):
    """Captions of two lengths may be two forwards before one backward; some blocks are called with keywords."""
    pipe = next(case for case in CASES if case.name == name).pipeline()
    family, denoiser = family_of(pipe), pipe.transformer
    fill(inject_adapter_in_model(FeraConfig(r=2), denoiser))
    denoiser.train()
    with torch.no_grad():
        conditions = family.encode(pipe, [CAPTION, "the sun and moon and a green tree"], CPU)
    noisy = torch.randn(2, 4, 8, 12)

    def gradients():
        denoiser.zero_grad()
        family.predict(denoiser, noisy, torch.tensor([300.0, 700.0]), conditions).square().mean().backward()
        return {key: weight.grad.clone() for key, weight in denoiser.named_parameters() if weight.grad is not None}

    kept = gradients()
    checkpoint_gradients(denoiser, family)
    recomputed = gradients()
    assert kept.keys() == recomputed.keys() and len(kept) > 5
    for key, gradient in kept.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_half_precision_predicts_nearly_the_same(pipe, case, tmp_path):
    """As training casts: weights, latents and conditions, masks among them."""
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    conditions = told(pipe, case, [CAPTION])
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    expected = family.predict(denoiser, noisy, at(pipe, 0.5), conditions)
    denoiser.save_pretrained(tmp_path)  # some keep a few of their weights as they are when they are loaded
    half = type(denoiser).from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = family.cast(conditions, torch.bfloat16)
    prediction = family.predict(half, noisy.bfloat16(), at(pipe, 0.5), cast)
    assert prediction.isfinite().all()
    assert (prediction.float() - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
def test_the_length_of_a_caption_is_exact_in_half_precision():
    """A sum of ones in bfloat16 is not, from 257 on."""
    pipe = ernie_image.make_pipeline()
    transformer = pipe.transformer.bfloat16()
    conditions = {"text_bth": torch.randn(1, 301, 8).bfloat16(), "mask": torch.ones(1, 301).bfloat16()}
    with Recorder(pipe) as seen:
        noisy = torch.randn(1, 4, 8, 8).bfloat16()
        family_of(pipe).predict(transformer, noisy, torch.tensor([500.0]), conditions)
    assert seen.arguments()["text_lens"].tolist() == [301]


@torch.no_grad()
def test_training_calls_the_denoiser_with_its_latent(pipe, case):
    """The gate sees the noisy latent as training has it."""
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    conditions = told(pipe, case, [CAPTION])
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    with Recorder(pipe) as seen:
        for level in (0.001, 0.5, 0.999):
            family.predict(denoiser, noisy, at(pipe, level), conditions)
    assert all(torch.equal(latent, noisy) for latent in seen.latents)
    levels = [float(seen.reader.noise_level(args, kwargs, noisy)) for args, kwargs in seen.calls]
    assert levels[0] == pytest.approx(0, abs=0.01) and levels[2] == pytest.approx(1, abs=0.01)
    assert levels == sorted(levels)


@torch.no_grad()
def test_captions_of_a_batch_do_not_mix(pipe, case):
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    captions = [CAPTION, "the sun and moon and a green tree"]
    noisy = torch.randn(2, *family.clean_latents(pipe.vae, pictures(case)).shape[1:])
    timesteps = torch.cat([at(pipe, 0.3), at(pipe, 0.7)])
    both = family.predict(denoiser, noisy, timesteps, told(pipe, case, captions))
    for row, caption in enumerate(captions):
        conditions = told(pipe, case, [caption])
        alone = family.predict(denoiser, noisy[row : row + 1], timesteps[row : row + 1], conditions)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case.sources or case.given], ids=lambda case: case.name)
def test_sources_are_seen(case, monkeypatch):
    case.patch(monkeypatch)
    pipe = case.pipeline()
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    ones, others = (told(pipe, case, [CAPTION], seed) for seed in (7, 70))
    one, other = (family.predict(denoiser, noisy, torch.tensor([500.0]), each) for each in (ones, others))
    assert not torch.allclose(one, other, atol=1e-4)
    if "encoder_hidden_states" not in ones:
        return
    reads_them = not torch.allclose(ones["encoder_hidden_states"], others["encoder_hidden_states"], atol=1e-4)
    assert reads_them == (family.pairs.encode is not None)


def test_reading_a_caption_leaves_adapters_and_random_numbers_alone():
    pipe = chroma.make_pipeline()
    inject_adapter_in_model(FeraConfig(r=2), pipe.transformer)
    state = torch.get_rng_state()
    with fera.trace(pipe) as steps:
        family_of(pipe).encode(pipe, [CAPTION], CPU)
    assert steps == [] and torch.equal(torch.get_rng_state(), state)
