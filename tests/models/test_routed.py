"""Every denoiser that fera lists, in its real pipeline, called as users call it: the gate follows the latent alone."""

import diffusers.models as diffusers_models
import pytest
import torch
from peft import inject_adapter_in_model
from trained_cases import CASES as TRAINED
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera import models as denoisers
from fera.models import table
from fera.models.components import denoisers as denoisers_of
from fera.models.reading import CallReader
from models import CASES
from models.recorded import recorded_latents, stacked


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def pipe(case):
    """The case's pipeline, with an adapter on the default targets whose every weight counts."""
    pipe = case.pipeline()
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, case.component)
    inject_adapter_in_model(FeraConfig(r=2), denoiser, "default")
    fill(denoiser)
    return pipe


def draw(pipe, case, seed=0, **changes):
    """The routings of a pipeline call, the latents of its steps, and its result."""
    generator = torch.Generator().manual_seed(seed)
    with fera.trace(pipe) as steps, recorded_latents(pipe) as latents:
        result = pipe(**{**case.call, **changes}, generator=generator, return_dict=False)[0]
    return steps[case.calls_before :], latents, stacked(result)


def test_the_indicator_of_every_call_is_that_of_the_schedulers_latent(pipe, case):
    steps, latents, _ = draw(pipe, case)
    assert len(latents) > 1
    assert len(steps) == len(latents) * case.calls_per_step
    bands = fera.FrequencyBands()
    for number, routing in enumerate(steps):
        latent = case.unpack(pipe, latents[number // case.calls_per_step])
        expected = bands.indicator(latent.float()).repeat(case.copies, 1)
        torch.testing.assert_close(routing.indicator, expected, rtol=1e-4, atol=1e-5)
        assert routing.timestep is not None


def test_the_noise_level_falls_from_one_to_zero(pipe, case):
    """What a router that reads the timestep sees: each pipeline has its own unit and direction."""
    denoiser = getattr(pipe, case.component)
    reader, levels = CallReader(denoiser), []

    def read(module, args, kwargs):
        levels.append(reader.noise_level(args, kwargs, reader.latent(module, args, kwargs)))

    handle = denoiser.register_forward_pre_hook(read, with_kwargs=True)
    draw(pipe, case)
    handle.remove()
    levels = levels[case.calls_before :]
    means = [float(level.mean()) for level in levels]
    assert all(level.ndim == 1 and level.dtype == torch.float32 for level in levels)
    assert max(means) <= 1.001 and min(means) >= -0.001
    assert means[0] >= 0.6 and means[-1] <= 0.8 and means == sorted(means, reverse=True) and means[0] > means[-1]


def test_conditions_alone_leave_the_first_gate_alone(pipe, case):
    steps, _, result = draw(pipe, case)
    others, _, other_result = draw(pipe, case, **case.other_conditions)
    assert torch.equal(steps[0].gates, others[0].gates)
    assert not torch.allclose(result, other_result)


def test_another_latent_moves_the_gate(pipe, case):
    steps, _, _ = draw(pipe, case)
    others, _, _ = draw(pipe, case, seed=1)
    assert not torch.allclose(steps[0].gates, others[0].gates, rtol=0, atol=1e-6)


def test_the_adapter_acts(pipe, case):
    adapted = draw(pipe, case)[2]
    fera.unload(pipe)
    base = pipe(**case.call, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    assert not torch.allclose(adapted, stacked(base))


def test_the_table_lists_what_is_proven():
    """Here, or in test_trained_runs.py, which draws with an adapter too."""
    proven = {}
    for case in [*CASES, *TRAINED]:
        pipe = case.pipeline()
        denoiser = next(iter(denoisers_of(pipe).values())) if case in TRAINED else getattr(pipe, case.component)
        name = type(getattr(pipe, "pipeline", pipe)).__name__  # of a modular one
        proven.setdefault(type(denoiser).__name__, set()).add(name)
    assert {name: set(entry.pipelines) for name, entry in denoisers.known().items()} == proven


def test_every_denoiser_of_diffusers_is_routed_or_listed_with_the_reason():
    found = diffusers_models._import_structure
    classes = {
        name for module, names in found.items() for name in names if "transformers" in module or "unets" in module
    }
    classes.add("AudioLDM2UNet2DConditionModel")  # in its pipeline's folder
    listed = {name for names in table.NOT_ROUTED for name in names.split(", ")}
    assert classes - denoisers.known().keys() == listed
    assert all(f"`{name}`" in table.to_markdown() for name in listed)
