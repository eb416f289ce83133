"""Schedulers that give log(sigma) / 4 in the place of a timestep: a router that reads it refuses them."""

import copy

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline, write_adapter
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from pipeline_calls import call

import fera
from fera import FeraError

CONTINUOUS = {
    "edm euler": EDMEulerScheduler,
    "edm dpm": EDMDPMSolverMultistepScheduler,
    "euler": lambda: EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True
    ),
}
DISCRETE = {
    "ddim": DDIMScheduler,
    "dpm": lambda: DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    # diffusers makes its timesteps from sigmas for other predictions only
    "euler, continuous by name": lambda: EulerDiscreteScheduler(timestep_type="continuous"),
}
continuous = pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)
READERS = {
    "timestep": {"router_input": "timestep"},
    "shares and timestep": {"router_input": "shares+timestep"},
    "rank mask": {"router": "rank_mask", "router_input": "timestep"},
}


@continuous
@pytest.mark.parametrize("settings", READERS.values(), ids=READERS)
def test_a_router_that_reads_the_timestep_refuses_at_the_first_step(make, settings, tmp_path):
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink", **settings))
    discrete = copy.deepcopy(pipe.scheduler)
    expected = call(pipe)[2]
    pipe.scheduler = make()
    with (
        fera.trace(pipe) as steps,
        pytest.raises(FeraError, match=rf"{type(pipe.scheduler).__name__} gives log\(sigma"),
    ):
        pipe(PROMPTS[0], num_inference_steps=4)
    assert not steps and pipe.unet.fera.gates is None
    pipe.scheduler = discrete
    assert torch.equal(call(pipe)[2], expected)


@continuous
def test_without_its_pipeline_it_refuses_what_is_no_timestep(make):
    """An adapter that fera did not load: pure noise may pass for little noise, but the walk does not end."""
    pipe = add_adapter(make_pipeline("sd"), router_input="timestep")
    pipe.scheduler = make()
    with pytest.raises(FeraError, match=r"got \[-.*not between 0 .* and 1000 .*log\(sigma\) / 4"):
        pipe(PROMPTS[0], num_inference_steps=10)


@continuous
def test_a_router_that_reads_the_latent_works(make, tmp_path):
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink"))
    pipe.scheduler = make()
    with fera.trace(pipe) as steps:
        pipe(PROMPTS[0], num_inference_steps=4)
    assert len(steps) >= 4


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
def test_schedulers_that_give_timesteps_are_read(make, tmp_path):
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink", router_input="shares+timestep"))
    pipe.scheduler = make()
    steps, _, _ = call(pipe)
    times = torch.stack([routing.timestep for routing in steps]).float()
    assert times[0] > 600 and times[-1] < 400
    assert (steps[0].gates - steps[-1].gates).abs().max() > 1e-3


def test_a_pipeline_is_not_kept_alive_and_copies_forget_it(tmp_path):
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, write_adapter("sd", tmp_path / "ink", router_input="timestep"))
    copied = copy.deepcopy(pipe.unet)
    unet = pipe.unet
    pipe.scheduler = EDMEulerScheduler()
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(1.0), torch.randn(1, 5, 32)
    with torch.no_grad(), pytest.raises(FeraError, match="EDMEulerScheduler"):
        unet(*inputs)
    with torch.no_grad():
        expected = copied(*inputs).sample
        del pipe
        assert torch.equal(unet(*inputs).sample, expected)
