"""What is recorded of a drawing: the clean latent of each kind of prediction, the layouts of latents, energies."""

import copy
import csv

import numpy as np
import pytest
import torch
from adapter_cases import PROMPTS, make_pipeline
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from models import CASES

from fera import FeraError, FrequencyBands
from fera.analysis.energies import Energies, join_batches, record_energies, spread
from fera.analysis.tables import save_energies
from fera.analysis.walk import Sampling, draw, walk
from fera.analysis.words import energy_words
from fera.generation import generate
from fera.models.noise import noise_process, spread_timesteps
from fera.pipelines.clean import check_scheduler, clean_after_step, denoised, process_scales
from fera.pipelines.recording import record_denoising

BANDS = FrequencyBands()
KINDS = ("epsilon", "v_prediction", "flow_prediction")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler_of(kind):
    if kind == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    return DDIMScheduler(prediction_type=kind)


# The clean latent of a prediction


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_implies_the_true_latent(kind):
    process = noise_process(scheduler_of(kind))
    timesteps = spread_timesteps(process, 5)
    clean, noise = randn(5, 4, 8, 8), randn(5, 4, 8, 8, seed=1)
    noisy = process.add_noise(clean, noise, timesteps)
    implied = denoised(kind, noisy, process.target(clean, noise, timesteps), *process_scales(process, timesteps))
    torch.testing.assert_close(implied, clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("scheduler_class", "kind", "settings"),
    [
        (DDIMScheduler, "epsilon", {"clip_sample": False}),
        (DDIMScheduler, "v_prediction", {"clip_sample": False}),
        (DDIMScheduler, "sample", {"clip_sample": False}),
        (EulerDiscreteScheduler, "epsilon", {"use_karras_sigmas": True}),
        (EulerDiscreteScheduler, "v_prediction", {}),
        (HeunDiscreteScheduler, "epsilon", {}),
    ],
)
def test_the_clean_latent_is_the_schedulers_own(scheduler_class, kind, settings):
    scheduler = scheduler_class(prediction_type=kind, beta_schedule="scaled_linear", **settings)
    scheduler.set_timesteps(5)
    sample = randn(2, 4, 8, 8) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps[:3]:
        scheduler.scale_model_input(sample, timestep)
        output = randn(2, 4, 8, 8, seed=int(timestep))
        result = scheduler.step(output, timestep, sample)
        torch.testing.assert_close(
            clean_after_step(scheduler, output, timestep, sample), result.pred_original_sample, rtol=1e-4, atol=1e-4
        )
        sample = result.prev_sample


@pytest.mark.parametrize("scheduler_class", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize(
    "settings",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "v_prediction", "use_karras_sigmas": True},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ],
)
def test_the_clean_latent_is_that_of_the_solvers(scheduler_class, settings):
    scheduler = scheduler_class(**settings)
    scheduler.set_timesteps(4)
    sample = randn(2, 4, 8, 8)
    for timestep in scheduler.timesteps:
        output = randn(2, 4, 8, 8, seed=int(timestep))
        twin = copy.deepcopy(scheduler)
        if twin.step_index is None:
            twin._init_step_index(timestep)
        expected = twin.convert_model_output(output, sample=sample)
        following = scheduler.step(output, timestep, sample).prev_sample
        torch.testing.assert_close(
            clean_after_step(scheduler, output, timestep, sample), expected, rtol=1e-4, atol=1e-4
        )
        sample = following


def test_flow_matching_follows_the_schedulers_own_levels():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    clean, noise = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.clone(), strict=False):
        sample = (1 - sigma) * clean + sigma * noise
        scheduler.step(noise - clean, timestep, sample)
        implied = clean_after_step(scheduler, noise - clean, timestep, sample)
        torch.testing.assert_close(implied, clean, rtol=1e-4, atol=1e-5)


def test_schedulers_that_cannot_be_read_are_refused():
    assert check_scheduler(LCMScheduler()) == "epsilon"
    with pytest.raises(FeraError, match="predicted clean latent of a IPNDMScheduler"):
        check_scheduler(IPNDMScheduler())
    pipe = make_pipeline("sd")
    pipe.scheduler = IPNDMScheduler()
    with pytest.raises(FeraError, match="IPNDMScheduler"), record_denoising(pipe, lambda step: None):
        pass


# Recording


@pytest.fixture(scope="module", params=["sd", "sd3"])
def pipe(request):
    return make_pipeline(request.param)


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def hooks(pipe):
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return len(denoiser._forward_pre_hooks), "step" in vars(pipe.scheduler)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_recording_changes_nothing_and_leaves_nothing(pipe, guidance):
    settings = {"num_inference_steps": 3, "guidance_scale": guidance}
    plain = pixels(generate(pipe, PROMPTS, **settings))
    seen = []
    with record_denoising(pipe, seen.append):
        recorded = pixels(generate(pipe, PROMPTS, **settings))
    assert np.array_equal(plain, recorded)
    assert hooks(pipe) == (0, False)
    assert len(seen) == 3 and all(step.latent.shape == (2, 4, 8, 8) for step in seen)
    assert [step.timestep for step in seen] == sorted((step.timestep for step in seen), reverse=True)


def test_a_failure_leaves_nothing(pipe):
    def fail(step):
        raise FeraError("enough")

    with pytest.raises(FeraError, match="enough"), record_denoising(pipe, fail):
        generate(pipe, PROMPTS, num_inference_steps=2)
    assert hooks(pipe) == (0, False)


def test_an_own_step_of_the_scheduler_comes_back(pipe):
    own = pipe.scheduler.step
    calls = []

    def step(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    pipe.scheduler.step = step
    try:
        with record_denoising(pipe, lambda step: None):
            generate(pipe, PROMPTS[:1], num_inference_steps=2)
        assert pipe.scheduler.step is step and len(calls) == 2
    finally:
        del pipe.scheduler.step


def test_a_copy_of_the_scheduler_steps_for_itself(pipe):
    seen = []
    with record_denoising(pipe, seen.append):
        other = copy.deepcopy(pipe.scheduler)
        other.set_timesteps(2)
        other.step(randn(1, 4, 8, 8), other.timesteps[0], randn(1, 4, 8, 8, seed=1))
        assert other.step_index == 1 and pipe.scheduler.step_index != 1
    assert seen == []


def check_layout(case):
    """The scheduler's own latent, unpacked by the pipeline's own function, is what is recorded."""
    pipe = case.pipeline()
    pipe.set_progress_bar_config(disable=True)
    own, latents, outputs, seen = pipe.scheduler.step, [], [], []

    def step(model_output, timestep, sample, *args, **kwargs):
        latents.append(sample.clone())
        outputs.append(model_output.clone())
        return own(model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler.step = step
    with record_denoising(pipe, seen.append):
        pipe(**case.call, generator=torch.Generator().manual_seed(0), return_dict=False)
    assert len(seen) == len(latents) > 1
    for recorded, latent, output in zip(seen, latents, outputs, strict=True):
        unpacked = case.unpack(pipe, latent).float()
        torch.testing.assert_close(BANDS.energies(recorded.latent), BANDS.energies(unpacked), rtol=1e-4, atol=1e-5)
        assert recorded.prediction.shape == recorded.clean.shape == recorded.latent.shape
        assert float(recorded.prediction.square().sum()) == pytest.approx(float(output.square().sum()), rel=1e-4)


# Packed tokens; those of a reference behind them; appended channels of a mask; opposite sign; tokens of a video.
LAYOUTS = ("flux", "flux-kontext", "flux-fill", "z-image", "ltx")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in LAYOUTS], ids=lambda case: case.name)
def test_packed_latents_are_seen_as_they_lie(case):
    check_layout(case)


def test_a_latent_that_is_not_in_the_call_is_an_error():
    pipe = make_pipeline("sd")
    with pytest.raises(FeraError, match="not found in the call of its UNet2DConditionModel"):
        with record_denoising(pipe, lambda step: None):
            pipe.unet(randn(3, 4, 6, 6), 1.0, encoder_hidden_states=randn(3, 5, 32))
            pipe.scheduler.set_timesteps(2)
            pipe.scheduler.step(randn(2, 4, 8, 8), pipe.scheduler.timesteps[0], randn(2, 4, 8, 8))


# Energies


def test_energies_of_a_drawing_are_those_of_its_latents(pipe):
    steps = []
    with record_denoising(pipe, steps.append):
        generate(pipe, PROMPTS, num_inference_steps=3)
    with record_energies(pipe, BANDS) as recorded:
        generate(pipe, PROMPTS, num_inference_steps=3)
    energies = join_batches("base", [recorded])
    for number, step in enumerate(steps):
        torch.testing.assert_close(energies.signals["latent"][number], BANDS.energies(step.latent) / (4 * 8 * 8))
        torch.testing.assert_close(energies.shares("clean")[number], BANDS.indicator(step.clean))


def test_batches_and_all_at_once_agree(pipe):
    sampling = Sampling([*PROMPTS, "a blue house"], steps=2, batch_size=2, guidance_scale=3.0)
    parts = walk(pipe, sampling, BANDS, model="base", traced=False)
    whole = walk(pipe, Sampling(sampling.prompts, steps=2, guidance_scale=3.0), BANDS, model="base", traced=False)
    assert parts.gates == [] and parts.energies.signals["latent"].shape == (2, 3, 3)
    for name, values in whole.energies.signals.items():
        torch.testing.assert_close(parts.energies.signals[name], values, rtol=1e-3, atol=1e-5)
    assert np.array_equal(pixels(parts.images), pixels(draw(pipe, sampling)))


def test_batches_of_other_steps_are_refused(pipe):
    with record_energies(pipe, BANDS) as two:
        generate(pipe, PROMPTS[:1], num_inference_steps=2)
    with record_energies(pipe, BANDS) as three:
        generate(pipe, PROMPTS[:1], num_inference_steps=3)
    with pytest.raises(FeraError, match="the same denoising steps"):
        join_batches("base", [two, three])
    with pytest.raises(FeraError, match="the same denoising steps"):
        join_batches("base", [[]])


@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 4), st.integers(0, 99))
def test_shares_sum_to_one_and_percentiles_are_ordered(steps, pictures, bands, seed):
    values = randn(steps, pictures, bands, seed=seed).square()
    values[0, 0] = 0
    entry = Energies("base", list(range(steps)), {"latent": values})
    torch.testing.assert_close(entry.shares("latent").sum(dim=2), torch.ones(steps, pictures))
    statistics = spread(values)
    assert (statistics.low <= statistics.high).all() and (statistics.std >= 0).all()
    torch.testing.assert_close(statistics.mean, torch.from_numpy(values.numpy().mean(axis=1)))


def made_up(model="base", factor=1.0):
    """Low energy rises from step to step; the middle band of step 3 is multiplied by a factor."""
    low = torch.tensor([0.2, 0.2, 0.55, 0.7, 0.8])
    values = torch.stack([low, (1 - low) / 2, (1 - low) / 2], dim=1)[:, None].repeat(1, 4, 1)
    values[2, :, 1] *= factor
    return Energies(
        model, [900.0, 700.0, 500.0, 300.0, 100.0], dict.fromkeys(("latent", "clean", "prediction"), values)
    )


def test_words_say_what_the_numbers_are():
    first, *_ = energy_words([made_up()])
    assert "the low band's share rises from 0.20 at the first step to 0.80 at the last" in first
    assert "half of the change has happened by step 3 of 5" in first
    sentences = energy_words([made_up(), made_up("adapted", factor=2.0)])
    assert (
        "moves most energy in the middle band, at step 3 (timestep 500): 0.225 becomes 0.45, +100 %, in 4 of 4"
        in (sentences[6])
    )
    assert "low 0%, middle 100%, high 0%" in sentences[6]
    assert energy_words([made_up(), made_up("adapted")])[6].endswith("no energy changes at all.")
    still = Energies("base", [1.0, 0.0], dict.fromkeys(("latent", "clean", "prediction"), torch.ones(2, 1, 3)))
    assert "no band's share changes" in energy_words([still])[0]


def test_the_table_holds_every_number(tmp_path):
    entry = made_up()
    save_energies([entry], tmp_path / "energies.csv")
    rows = list(csv.DictReader((tmp_path / "energies.csv").open()))
    assert len(rows) == 3 * 5 * 3 * 2
    (row,) = [
        row
        for row in rows
        if (row["signal"], row["step"], row["band"], row["quantity"]) == ("clean", "4", "low", "share")
    ]
    assert (row["model"], row["timestep"], float(row["mean"]), float(row["p90"])) == ("base", "300", 0.7, 0.7)
