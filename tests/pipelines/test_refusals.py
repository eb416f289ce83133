"""What cannot be loaded or saved is one clear error, and leaves the pipeline alone."""

import pytest
import torch
from adapter_cases import add_adapter, bits, denoiser_of, draw, make_pipeline, same, write_adapter
from safetensors.torch import load_file

import fera
from fera import FeraError
from fera.pipelines.adapters import adapters
from fera.tuner import FrequencyGate

pytest_plugins = ("pipeline_fixtures",)


@pytest.fixture
def untouched(pipe):
    """Fails where a refusal left something behind."""
    before, drawn = bits(denoiser_of(pipe)), draw(pipe)
    yield
    assert same(bits(denoiser_of(pipe)), before)
    assert adapters(pipe) == []
    assert not any(isinstance(module, FrequencyGate) for module in denoiser_of(pipe).modules())
    assert torch.equal(draw(pipe), drawn)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", ["", "v1.5"])
def test_names_with_dots_are_refused(pipe, ink, name):
    with pytest.raises(FeraError, match="adapter_name must be a name without dots"):
        fera.load_adapter(pipe, ink, adapter_name=name)


@pytest.mark.usefixtures("untouched")
def test_another_class_of_denoiser_is_refused(pipe, kind, tmp_path):
    foreign = write_adapter("sd3" if kind == "sd" else "sd", tmp_path / "foreign")
    with pytest.raises(FeraError, match="was trained on a .*, but this base is a .*Load the adapter into the base"):
        fera.load_adapter(pipe, foreign)


@pytest.mark.usefixtures("untouched")
def test_other_weights_are_refused_unless_meant(pipe, kind, tmp_path):
    other = make_pipeline(kind)
    with torch.no_grad():
        for parameter in denoiser_of(other).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)) * 0.1)
    fera.save_adapter(add_adapter(other), tmp_path / "out")
    with pytest.raises(FeraError, match="same architecture, but the weights differ by"):
        fera.load_adapter(pipe, tmp_path / "out")
    fera.load_adapter(pipe, tmp_path / "out", allow_other_base=True)
    fera.unload(pipe)


@pytest.mark.usefixtures("untouched")
def test_a_damaged_file_is_refused(pipe, ink, tmp_path):
    content = (ink / "adapter_model.safetensors").read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(content[:size])
        with pytest.raises(FeraError, match="not a readable safetensors file"):
            fera.load_adapter(pipe, damaged)


@pytest.mark.usefixtures("untouched")
def test_a_tensor_too_few_is_refused(pipe, ink, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = ink / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(weights)
    for unwanted in ("router", "experts_B"):
        fewer = dict(tensors)
        fewer.pop(next(key for key in tensors if unwanted in key))
        save_file(fewer, tmp_path / "fewer.safetensors", metadata=metadata)
        with pytest.raises(FeraError, match="the adapter's file has no tensor .*: it is incomplete"):
            fera.load_adapter(pipe, tmp_path / "fewer.safetensors")


@pytest.mark.usefixtures("untouched")
def test_a_hub_id_offline_is_one_clear_error(pipe):
    with pytest.raises(FeraError, match="no adapter at 'someone/ink' .no such folder here, and not found on"):
        fera.load_adapter(pipe, "someone/ink")


def test_what_is_no_pipeline_is_refused(ink, tmp_path):
    with pytest.raises(FeraError, match="expected a diffusers pipeline or a denoiser, got a str"):
        fera.load_adapter("runs/ink", ink)


def test_a_pipeline_without_a_known_denoiser_names_what_it_has(ink):
    pipe = make_pipeline("sd")
    pipe.unet = pipe.vae
    with pytest.raises(FeraError, match="fera knows none of this StableDiffusionPipeline's components .*vae"):
        fera.load_adapter(pipe, ink)


def test_save_names_what_there_is(pipe, ink, tmp_path):
    with pytest.raises(FeraError, match="no adapter 'default' to save; there are: none"):
        fera.save_adapter(pipe, tmp_path / "out")
    fera.load_adapter(pipe, ink, adapter_name="ink")
    with pytest.raises(FeraError, match="no adapter 'default' to save; there are: ink"):
        fera.save_adapter(pipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saving_a_plain_lora_is_refused(pipe, lora, tmp_path):
    pipe.load_lora_weights(lora, adapter_name="plain")
    with pytest.raises(FeraError, match="no FeRA adapter 'plain' to save"):
        fera.save_adapter(pipe, tmp_path / "out", adapter_name="plain")
