"""Pipelines with two denoisers: an adapter knows its own; both load, save, trace and unload together."""

import json

import pytest
import torch
from models import stable_cascade, wan
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.adapters.file import open_adapter
from fera.format import CONFIG, WEIGHTS
from fera.pipelines.adapters import adapters
from fera.tuner import FrequencyGate

CALL = {name: value for name, value in wan.CALL_I2V.items() if name != "image"} | {"num_inference_steps": 4}


def make_pipeline():
    pipe = wan.make_two_denoisers()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapt(pipe, *components, name="default", seed=0):
    """Put an adapter into each of some denoisers, as training would leave them."""
    for number, component in enumerate(components):
        denoiser = getattr(pipe, component)
        inject_adapter_in_model(FeraConfig(r=2), denoiser, name)
        fill(denoiser, seed + number, name)
    return pipe


def draw(pipe, seed=0):
    return pipe(**CALL, generator=torch.Generator().manual_seed(seed), return_dict=False)[0]


def bits(pipe):
    return {
        f"{component}.{name}": tensor.clone()
        for component in ("transformer", "transformer_2")
        for name, tensor in getattr(pipe, component).state_dict().items()
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folder of an adapter for both denoisers."""
    folder = tmp_path_factory.mktemp("both") / "ink"
    fera.save_adapter(adapt(make_pipeline(), "transformer", "transformer_2"), folder)
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Folder of an adapter for the second denoiser."""
    folder = tmp_path_factory.mktemp("second") / "ink"
    fera.save_adapter(adapt(make_pipeline(), "transformer_2", seed=5), folder)
    return folder


# One of two


@pytest.mark.parametrize("component", ["transformer", "transformer_2"])
def test_an_adapter_goes_back_to_its_own_denoiser(pipe, tmp_path, component):
    drawn = draw(adapt(pipe, component))
    fera.save_adapter(pipe, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {WEIGHTS, CONFIG}
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["component"] == component
    (tmp_path / "out" / CONFIG).unlink()  # the metadata of the weights say it too
    assert open_adapter(tmp_path / "out").config.component == component
    other = make_pipeline()
    fera.load_adapter(other, tmp_path / "out")
    assert torch.equal(draw(other), drawn)
    assert [name for name in ("transformer", "transformer_2") if hasattr(getattr(other, name), "fera")] == [component]


def test_an_adapter_that_does_not_say_is_told_by_its_base(pipe, second, tmp_path):
    fera.load_adapter(make_pipeline().transformer_2, second)  # a bare denoiser takes any
    bare = adapt(make_pipeline(), "transformer_2", seed=5)
    fera.save_adapter(bare.transformer_2, tmp_path / "bare")
    assert open_adapter(tmp_path / "bare").config.component is None
    fera.load_adapter(pipe, tmp_path / "bare")
    assert hasattr(pipe.transformer_2, "fera") and not hasattr(pipe.transformer, "fera")


def test_an_adapter_that_could_go_to_either_is_refused_unless_named(pipe, tmp_path):
    fera.save_adapter(adapt(make_pipeline(), "transformer").transformer, tmp_path / "out")
    pipe.transformer_2.load_state_dict(pipe.transformer.state_dict())
    with pytest.raises(FeraError, match="could belong to any of transformer, transformer_2 .*component='transformer'"):
        fera.load_adapter(pipe, tmp_path / "out")
    assert adapters(pipe) == []
    fera.load_adapter(pipe, tmp_path / "out", component="transformer_2")
    assert hasattr(pipe.transformer_2, "fera") and not hasattr(pipe.transformer, "fera")


def test_a_named_component_overrides_and_its_base_is_checked(pipe, second):
    with pytest.raises(FeraError, match="into transformer: .*the weights differ"):
        fera.load_adapter(pipe, second, component="transformer")
    assert adapters(pipe) == []
    fera.load_adapter(pipe, second, component="transformer", allow_other_base=True)
    assert hasattr(pipe.transformer, "fera") and not hasattr(pipe.transformer_2, "fera")
    with pytest.raises(FeraError, match="no denoiser 'unet' in this pipeline; there are: transformer, transformer_2"):
        fera.load_adapter(pipe, second, component="unet")


# Both


def test_both_save_into_folders_of_their_names_and_load_together(pipe, both):
    assert {str(file.relative_to(both)) for file in both.rglob("*.*")} == {
        f"{component}/{file}" for component in ("transformer", "transformer_2") for file in (WEIGHTS, CONFIG)
    }
    drawn = draw(adapt(make_pipeline(), "transformer", "transformer_2"))
    fera.load_adapter(pipe, both, adapter_name="ink")
    assert torch.equal(draw(pipe), drawn)
    fera.unload(pipe, "ink")
    assert adapters(pipe) == []
    assert torch.equal(draw(pipe), draw(make_pipeline()))


def test_one_of_a_folder_for_two(pipe, both):
    fera.load_adapter(pipe, both, component="transformer_2")
    assert hasattr(pipe.transformer_2, "fera") and not hasattr(pipe.transformer, "fera")
    fera.load_adapter(pipe, both / "transformer")
    assert torch.equal(draw(pipe), draw(adapt(make_pipeline(), "transformer", "transformer_2")))


def test_the_folder_of_a_run(pipe, both, tmp_path):
    (tmp_path / "adapter").symlink_to(both)
    fera.load_adapter(pipe, tmp_path)
    assert hasattr(pipe.transformer, "fera") and hasattr(pipe.transformer_2, "fera")


def test_a_pipeline_with_one_of_the_two_takes_its_own(both):
    pipe = wan.make_pipeline()
    fera.load_adapter(pipe, both)
    assert adapters(pipe) == ["default"]


def test_a_folder_for_two_is_no_adapter_of_a_bare_denoiser(pipe, both):
    with pytest.raises(
        FeraError, match="holds no adapter.* There are adapters in .*/transformer, .*/transformer_2: name"
    ):
        fera.load_adapter(pipe.transformer, both)


def test_the_folder_of_a_single_adapter_is_not_mixed_up(pipe, second):
    before = load_file(second / WEIGHTS)
    with pytest.raises(FeraError, match="holds the adapter of a single denoiser, not of transformer, transformer_2"):
        fera.save_adapter(adapt(pipe, "transformer", "transformer_2"), second)
    assert same(load_file(second / WEIGHTS), before)
    assert {file.name for file in second.iterdir()} == {WEIGHTS, CONFIG}


def test_two_names_in_two_denoisers(pipe, both, second):
    fera.load_adapter(pipe, both, adapter_name="both")
    drawn = draw(pipe)
    fera.load_adapter(pipe, second, adapter_name="second")
    assert adapters(pipe) == ["both", "second"]
    assert not torch.equal(draw(pipe), drawn)
    fera.set_adapters(pipe, "both")
    assert torch.equal(draw(pipe), drawn)
    fera.set_adapters(pipe, ["both", "second"], [1.0, 0.0])
    torch.testing.assert_close(draw(pipe), drawn)


def test_a_plain_adapter_of_the_name_in_the_other_denoiser_is_left_out(pipe, tmp_path):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), pipe.transformer, "default")
    fera.save_adapter(adapt(pipe, "transformer_2"), tmp_path / "out")
    assert open_adapter(tmp_path / "out").config.component == "transformer_2"


# All or nothing


def damage(both, folder):
    """A copy of the folder for two whose second adapter lacks a tensor."""
    for component in ("transformer", "transformer_2"):
        tensors, metadata = load_file(both / component / WEIGHTS), {"format": "pt"}
        if component == "transformer_2":
            tensors.pop(next(key for key in tensors if "experts_B" in key))
        (folder / component).mkdir(parents=True)
        save_file(tensors, folder / component / WEIGHTS, metadata=metadata)
        (folder / component / CONFIG).write_text((both / component / CONFIG).read_text())
    return folder


def test_a_failure_in_the_second_leaves_the_first_alone(pipe, both, tmp_path):
    before, drawn = bits(pipe), draw(pipe)
    with pytest.raises(FeraError, match="transformer_2 into transformer_2: the adapter's file has no tensor"):
        fera.load_adapter(pipe, damage(both, tmp_path / "damaged"))
    assert same(bits(pipe), before)
    assert torch.equal(draw(pipe), drawn)
    for denoiser in (pipe.transformer, pipe.transformer_2):
        assert not any(isinstance(module, FrequencyGate) for module in denoiser.modules())
        assert not denoiser._forward_pre_hooks
        assert not denoiser._hf_peft_config_loaded


def test_a_failure_leaves_active_what_was(pipe, both, second, tmp_path):
    fera.load_adapter(pipe, both, adapter_name="both")
    fera.load_adapter(pipe, second, adapter_name="second")
    fera.set_adapters(pipe, ["both", "second"], [0.5, 0.25])
    before, drawn = bits(pipe), draw(pipe)
    with pytest.raises(FeraError, match="has no tensor"):
        fera.load_adapter(pipe, damage(both, tmp_path / "damaged"), adapter_name="third")
    assert same(bits(pipe), before)
    assert torch.equal(draw(pipe), drawn)
    assert not any(parameter.requires_grad for name, parameter in pipe.transformer.named_parameters() if "lora" in name)


def test_a_name_taken_in_one_denoiser_is_refused_for_both(pipe, both, second):
    fera.load_adapter(pipe, second)
    drawn = draw(pipe)
    with pytest.raises(FeraError, match="transformer_2 already has an adapter 'default'"):
        fera.load_adapter(pipe, both)
    assert not hasattr(pipe.transformer, "fera")
    assert torch.equal(draw(pipe), drawn)


# Trace


def test_a_trace_says_which_denoiser_it_was(pipe, both):
    fera.load_adapter(pipe, both)
    with fera.trace(pipe) as steps:
        draw(pipe)
    components = [entry.component for entry in steps]
    assert components == sorted(components) and set(components) == {"transformer", "transformer_2"}
    boundary = 0.8 * pipe.scheduler.config.num_train_timesteps
    for entry in steps:
        assert (entry.timestep >= boundary).all() == (entry.component == "transformer")
    with fera.trace(pipe.transformer) as bare:
        draw(pipe)
    assert {entry.component for entry in bare} == {"denoiser"}
    assert len(bare) == components.count("transformer")


# Stable Cascade


def test_stable_cascade_in_one_pipeline_and_in_two(tmp_path):
    combined = stable_cascade.make_combined_pipeline()
    combined.set_progress_bar_config(disable=True)
    call = {
        "prompt": "a red rocket",
        "height": 128,
        "width": 128,
        "prior_num_inference_steps": 2,
        "num_inference_steps": 2,
        "prior_guidance_scale": 3.0,
        "output_type": "latent",
    }

    def run(pipe):
        return pipe(**call, generator=torch.Generator().manual_seed(0), return_dict=False)[0]

    base = run(combined)
    adapt(combined, "prior_prior", "decoder")
    with fera.trace(combined) as steps:
        drawn = run(combined)
    assert not torch.equal(drawn, base)
    assert [entry.component for entry in steps] == ["prior_prior"] * 2 + ["decoder"] * 2
    fera.save_adapter(combined, tmp_path / "both")
    other = stable_cascade.make_combined_pipeline()
    other.set_progress_bar_config(disable=True)
    fera.load_adapter(other, tmp_path / "both")
    assert torch.equal(run(other), drawn)
    # The pipeline of the first stage alone calls its denoiser otherwise: its base tells where the adapter belongs.
    prior = stable_cascade.make_prior_pipeline()
    fera.load_adapter(prior, tmp_path / "both" / "prior_prior")
    fera.save_adapter(prior, tmp_path / "prior")
    assert open_adapter(tmp_path / "prior").config.component == "prior"
    third = stable_cascade.make_combined_pipeline()
    fera.load_adapter(third, tmp_path / "prior")
    assert hasattr(third.prior_prior, "fera") and not hasattr(third.decoder, "fera")


def test_the_component_is_a_name():
    with pytest.raises(FeraError, match="component must be the name of a denoiser, got 2"):
        FeraConfig(component=2)
