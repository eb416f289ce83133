"""Fixtures of the tests of pipelines: a plugin, `pytest_plugins = ("pipeline_fixtures",)`."""

import copy

import pytest
from adapter_cases import COMPONENTS, denoiser_of, make_pipeline, write_adapter
from peft import LoraConfig, get_peft_model_state_dict


@pytest.fixture(scope="module", params=["sd", "sd3"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def originals():
    """One pipeline of each kind, never touched."""
    return {kind: make_pipeline(kind) for kind in COMPONENTS}


@pytest.fixture
def pipe(kind, originals):
    return copy.deepcopy(originals[kind])


@pytest.fixture(scope="module")
def ink(kind, tmp_path_factory):
    return write_adapter(kind, tmp_path_factory.mktemp(kind) / "ink", seed=1)


@pytest.fixture(scope="module")
def neon(kind, tmp_path_factory):
    return write_adapter(kind, tmp_path_factory.mktemp(kind) / "neon", seed=2, num_experts=2, num_bands=4, r=3)


@pytest.fixture
def lora(pipe, tmp_path):
    """Folder of a plain LoRA in diffusers' format."""
    other = copy.deepcopy(pipe)
    denoiser_of(other).add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(denoiser_of(other))
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    other.save_lora_weights(tmp_path / "lora", **{f"{component}_lora_layers": layers})
    return tmp_path / "lora"
