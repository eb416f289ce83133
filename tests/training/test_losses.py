"""Noise processes against float64 formulas and diffusers' own schedulers."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from pydantic import ValidationError

from fera import FeraError, FrequencyBands, frequency_energy_consistency
from fera.config import OptimizationConfig
from fera.models.noise import NoiseProcess, noise_process, spread_timesteps
from fera.training.step.draws import draw_noise, draw_timesteps
from fera.training.step.losses import check_loss_weights, denoising_losses, loss_weights
from fera.training.step.randomness import is_chosen

SETTINGS = OptimizationConfig()
FLOW = NoiseProcess("flow_prediction", 1000)


def latents(seed: int = 0, batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddpm_equals_diffusers(schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule)
    process = noise_process(scheduler)
    clean, noise, steps = latents(0), latents(1), torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(process.add_noise(clean, noise, steps), scheduler.add_noise(clean, noise, steps))
    assert torch.equal(process.target(clean, noise, steps), noise)
    velocity = noise_process(DDPMScheduler(beta_schedule=schedule, prediction_type="v_prediction"))
    torch.testing.assert_close(velocity.target(clean, noise, steps), scheduler.get_velocity(clean, noise, steps))


def test_ddpm_equals_the_formula_in_float64():
    alphas = torch.linspace(0.999, 0.01, 10)
    process = NoiseProcess("v_prediction", 10, alphas_cumprod=alphas)
    clean, noise, steps = latents(0), latents(1), torch.tensor([0, 2, 4, 6, 9])
    alpha = alphas.double()[steps].view(-1, 1, 1, 1)
    expected = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(process.add_noise(clean, noise, steps), expected, rtol=1e-12, atol=1e-12)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    torch.testing.assert_close(process.target(clean, noise, steps), velocity, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers_euler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = noise_process(scheduler)
    # The scheduler's own table: index 0 is pure noise.
    index = torch.tensor([0, 1, 250, 500, 999])
    steps = process.timesteps(index / 1000)
    torch.testing.assert_close(steps, scheduler.timesteps[index], rtol=1e-5, atol=1e-3)
    clean, noise = latents(0), latents(1)
    noisy = process.add_noise(clean, noise, scheduler.timesteps[index])
    expected = scheduler.scale_noise(clean, scheduler.timesteps[index], noise)
    torch.testing.assert_close(noisy, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(process.target(clean, noise, steps), noise - clean)


@pytest.mark.parametrize("cls", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_flow_fits_how_solvers_read_it(cls):
    """One solver step from noisy latents with the exact target must land on the clean ones."""
    scheduler = cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=1)
    process = noise_process(scheduler)
    assert process.is_flow and process.shift == 1.0
    scheduler.set_timesteps(1)
    sigma = scheduler.sigmas[0]
    clean, noise = latents(0, 1).float(), latents(1, 1).float()
    steps = (sigma * 1000).reshape(1)
    noisy = process.add_noise(clean, noise, steps)
    target = process.target(clean, noise, steps)
    landed = scheduler.step(target, scheduler.timesteps[0], noisy).prev_sample
    torch.testing.assert_close(landed, clean, rtol=1e-4, atol=1e-4)


def test_flow_shift_is_read_from_either_name_and_dynamic_shift_is_left_to_sampling():
    dpm = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.5)
    assert noise_process(dpm).shift == 2.5
    assert noise_process(FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)).shift == 1.0


def test_prediction_types_that_cannot_be_trained():
    with pytest.raises(FeraError, match="'sample'"):
        noise_process(DDPMScheduler(prediction_type="sample"))
    with pytest.raises(FeraError, match="flow matching"):
        noise_process(FlowMatchEulerDiscreteScheduler(), "epsilon")
    assert noise_process(DDIMScheduler(), "v_prediction").prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMDPMSolverMultistepScheduler(),
        EDMEulerScheduler(),
        EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.002, sigma_max=80.0),
        CMStochasticIterativeScheduler(),
        SCMScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
@pytest.mark.parametrize("prediction_type", ["auto", "epsilon", "flow_prediction"])
def test_continuous_noise_levels_are_refused(scheduler, prediction_type):
    with pytest.raises(FeraError, match=rf"{type(scheduler).__name__}\) is none of DDPM.*continuous"):
        noise_process(scheduler, prediction_type)


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_timesteps_are_in_range_and_reproducible(scheme, shift):
    settings = OptimizationConfig(weighting_scheme=scheme)
    process = NoiseProcess("flow_prediction", 1000, shift=shift)
    draws = [draw_timesteps(process, settings, 500, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].dtype == torch.float32 and draws[0].min() > 0 and draws[0].max() <= 1000
    assert torch.isfinite(loss_weights(process, settings, draws[0])).all()


def test_logit_mean_has_the_direction_of_diffusers_scripts():
    draws = {}
    for mean in (-1.0, 1.0):
        settings = OptimizationConfig(logit_mean=mean)
        draws[mean] = draw_timesteps(FLOW, settings, 500, torch.Generator().manual_seed(0)).mean()
    assert draws[1.0] < draws[-1.0]


def test_ddpm_timesteps_cover_all_and_only_the_range():
    process = noise_process(DDPMScheduler(num_train_timesteps=10))
    steps = draw_timesteps(process, SETTINGS, 1000, torch.Generator().manual_seed(0))
    assert steps.dtype == torch.int64 and set(steps.tolist()) == set(range(10))


def test_spread_timesteps_cover_the_process_evenly():
    assert torch.allclose(spread_timesteps(FLOW, 4), torch.tensor([875.0, 625.0, 375.0, 125.0]))
    assert spread_timesteps(noise_process(DDPMScheduler()), 4).tolist() == [875, 625, 375, 125]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    steps = torch.tensor([0, 100, 500, 999])
    weights = loss_weights(noise_process(scheduler), OptimizationConfig(snr_gamma=5.0), steps)
    snr = compute_snr(scheduler, steps)
    divisor = snr if prediction_type == "epsilon" else snr + 1
    torch.testing.assert_close(weights, torch.minimum(snr, torch.full_like(snr, 5.0)) / divisor)
    assert torch.equal(loss_weights(noise_process(scheduler), SETTINGS, steps), torch.ones(4))


@pytest.mark.parametrize(("prediction_type", "limit"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_weight_at_zero_terminal_snr_is_the_limit(prediction_type, limit):
    """As SNR goes to 0, min(SNR, gamma) is SNR: SNR / SNR is 1 all the way, SNR / (SNR + 1) goes to 0."""
    process = noise_process(DDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True))
    assert process.alphas_cumprod[-1] == 0 < process.alphas_cumprod[-2]
    weights = loss_weights(process, OptimizationConfig(snr_gamma=5.0), torch.tensor([998, 999]))
    assert weights[1] == limit and weights[0] == pytest.approx(limit, abs=1e-4)


def test_debiased_estimation_has_no_weight_at_zero_terminal_snr():
    """1 / sqrt(SNR) has no limit there; 1 / (SNR + 1) goes to 1."""
    settings, last = OptimizationConfig(debiased_estimation_loss=True), torch.tensor([999])
    epsilon = noise_process(DDPMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(FeraError, match="debiased_estimation_loss.*no signal at its last timestep.*snr_gamma"):
        check_loss_weights(epsilon, settings)
    check_loss_weights(epsilon, OptimizationConfig(snr_gamma=5.0))
    velocity = noise_process(DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    check_loss_weights(velocity, settings)
    assert loss_weights(velocity, settings, last) == 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_debiased_estimation_weights(prediction_type):
    """The formula in float64: the first steps of the schedule are above the bound of the SNR, the others below."""
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    steps = torch.tensor([0, 1, 10, 100, 500, 999])
    alpha = scheduler.alphas_cumprod.double()[steps]
    snr = alpha / (1 - alpha)
    assert snr[0] > 1000 > snr[2]
    snr = snr.clamp(max=1000)
    expected = 1 / snr.sqrt() if prediction_type == "epsilon" else 1 / (snr + 1)
    settings = OptimizationConfig(debiased_estimation_loss=True)
    weights = loss_weights(noise_process(scheduler), settings, steps)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected, rtol=1e-3, atol=0)


def test_weights_by_snr_exclude_each_other():
    with pytest.raises(ValidationError, match="snr_gamma and train.debiased_estimation_loss.*keep one"):
        OptimizationConfig(snr_gamma=5.0, debiased_estimation_loss=True)


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_timesteps_are_drawn_as_diffusers_scripts_draw_them(scheme, shift):
    """They look densities up in the scheduler's table of T noise levels; here they are not rounded to the table."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    settings = OptimizationConfig(weighting_scheme=scheme, logit_mean=0.3, logit_std=0.8, mode_scale=1.1)
    ours = draw_timesteps(noise_process(scheduler), settings, 500, torch.Generator().manual_seed(0))
    density = compute_density_for_timestep_sampling(
        scheme, 500, logit_mean=0.3, logit_std=0.8, mode_scale=1.1, generator=torch.Generator().manual_seed(0)
    )
    theirs = scheduler.timesteps[(density * 1000).long().clamp(0, 999)]
    assert (ours - theirs).abs().max() < 1.01 * shift  # the widest step of the table


def test_flow_weights():
    steps = torch.tensor([250.0, 1000.0])
    assert torch.equal(loss_weights(FLOW, SETTINGS, steps), torch.ones(2))
    weights = loss_weights(FLOW, OptimizationConfig(weighting_scheme="sigma_sqrt"), steps)
    torch.testing.assert_close(weights, torch.tensor([16.0, 1.0]))
    with pytest.raises(FeraError, match="snr_gamma"):
        loss_weights(FLOW, OptimizationConfig(snr_gamma=5.0), steps)
    with pytest.raises(FeraError, match="debiased_estimation_loss"):
        loss_weights(FLOW, OptimizationConfig(debiased_estimation_loss=True), steps)


def test_noise_offset_is_shared_by_the_pixels_of_a_channel():
    clean = torch.zeros(2, 4, 64, 64)
    plain = draw_noise(clean, 0.0, torch.Generator().manual_seed(0))
    offset = draw_noise(clean, 0.5, torch.Generator().manual_seed(0)) - plain
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset), rtol=0, atol=1e-6)
    assert 0.1 < offset[..., 0, 0].std() < 1.5


def test_losses_are_per_sample_and_consistency_runs_the_base_first():
    calls = []
    clean, noise, steps = latents(0).float(), latents(1).float(), torch.full((5,), 500.0)
    bands = FrequencyBands()

    def base(noisy, timesteps):
        calls.append("base")
        return noisy * 0.5

    def adapted(noisy, timesteps):
        calls.append("adapted")
        return noisy * 0.7

    losses = denoising_losses(FLOW, clean, noise, steps, adapted, base, bands)
    assert calls == ["base", "adapted"]
    noisy, target = (clean + noise) / 2, noise - clean
    expected = (0.7 * noisy - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.denoising, expected)
    wanted = frequency_energy_consistency(noisy * 0.5, noisy * 0.7, target, bands)
    torch.testing.assert_close(losses.consistency, wanted)


def test_consistency_off_never_runs_the_base():
    clean, noise, steps = latents(0).float(), latents(1).float(), torch.full((5,), 500.0)
    assert denoising_losses(FLOW, clean, noise, steps, lambda noisy, at: noisy).consistency is None


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25, 0.3, 0.01])
def test_a_fraction_is_chosen_evenly(fraction):
    chosen = [number for number in range(1000) if is_chosen(fraction, number)]
    assert len(chosen) == pytest.approx(1000 * fraction, abs=1)
    gaps = {after - before for before, after in zip(chosen, chosen[1:], strict=False)}
    assert max(gaps) - min(gaps) <= 1 and min(gaps) == int(1 / fraction)
