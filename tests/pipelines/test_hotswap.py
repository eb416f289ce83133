"""Other weights into a loaded adapter, in place: nothing is compiled again, and it is all or nothing."""

import pytest
import torch
from adapter_cases import TARGETS, add_adapter, denoiser_of, draw, make_pipeline, same, write_adapter
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from tiny import make_unet
from torch._dynamo.testing import CompileCounter
from tuner_cases import UNET, predict

import fera
from fera import FeraError
from fera.tuner.model import adapter_configs

# As small as it comes: the compiler's time grows with the layers.
SMALL = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "mid_block_type": None,
}


@pytest.fixture(scope="module", params=["sd", "sd3"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def files(kind, tmp_path_factory):
    """Two adapters alike, `ink` and `neon`."""
    folder = tmp_path_factory.mktemp(kind)
    return {name: write_adapter(kind, folder / name, seed) for seed, name in enumerate(("ink", "neon"))}


@pytest.fixture
def pipe(kind):
    return make_pipeline(kind)


def state(pipe):
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def test_draws_what_the_other_adapter_draws(pipe, files):
    fera.load_adapter(pipe, files["neon"])
    expected = draw(pipe)
    fera.unload(pipe)
    fera.load_adapter(pipe, files["ink"])
    inked, parameters = draw(pipe), [id(p) for p in denoiser_of(pipe).parameters()]
    fera.load_adapter(pipe, files["neon"], hotswap=True)
    assert torch.equal(draw(pipe), expected) and not torch.equal(expected, inked)
    assert [id(p) for p in denoiser_of(pipe).parameters()] == parameters
    fera.load_adapter(pipe, files["ink"], hotswap=True)
    assert torch.equal(draw(pipe), inked)


def test_weights_and_activity_stay(pipe, files):
    fera.load_adapter(pipe, files["neon"], adapter_name="style")
    fera.load_adapter(pipe, files["ink"], adapter_name="other")
    fera.set_adapters(pipe, ["style", "other"], [0.7, 0.3])
    expected = draw(pipe)
    fera.unload(pipe)
    fera.load_adapter(pipe, files["ink"], adapter_name="style")
    fera.load_adapter(pipe, files["ink"], adapter_name="other")
    fera.set_adapters(pipe, ["style", "other"], [0.7, 0.3])
    fera.load_adapter(pipe, files["neon"], adapter_name="style", hotswap=True)
    assert torch.equal(draw(pipe), expected)
    fera.set_adapters(pipe, "other")
    inked = draw(pipe)
    fera.load_adapter(pipe, files["ink"], adapter_name="style", hotswap=True)
    assert torch.equal(draw(pipe), inked)


def test_what_is_saved_afterwards_is_the_new_adapter(pipe, files, tmp_path):
    fera.load_adapter(pipe, files["ink"])
    fera.load_adapter(pipe, files["neon"], hotswap=True)
    fera.save_adapter(pipe, tmp_path / "again")
    weights, settings = "adapter_model.safetensors", "adapter_config.json"
    assert same(load_file(tmp_path / "again" / weights), load_file(files["neon"] / weights))
    assert (tmp_path / "again" / settings).read_text() == (files["neon"] / settings).read_text()


@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_compiled_denoiser_is_not_compiled_again(whole, tmp_path):
    torch._dynamo.reset()
    for seed, name in enumerate(("ink", "neon")):
        pipe = make_pipeline("sd")
        pipe.unet = make_unet(**SMALL)
        fera.save_adapter(add_adapter(pipe, seed=seed), tmp_path / name)
    inputs = UNET.inputs(2)
    fera.load_adapter(pipe, tmp_path / "ink", adapter_name="style")
    fera.load_adapter(pipe, tmp_path / "neon", adapter_name="expected")
    with torch.no_grad():
        expected = predict(pipe.unet, inputs)
        fera.unload(pipe, "expected")
        fera.set_adapters(pipe, "style")
        counter = CompileCounter()
        if whole:
            pipe.unet = torch.compile(pipe.unet, backend=counter)
        else:
            pipe.unet.compile(backend=counter)
        inked = [predict(pipe.unet, inputs) for _ in range(2)][0]  # bands fill a cache in the first call
        graphs = counter.frame_count
        for name, right in (("neon", expected), ("ink", inked), ("neon", expected)):
            fera.load_adapter(pipe, tmp_path / name, adapter_name="style", hotswap=True)
            torch.testing.assert_close(predict(pipe.unet, inputs), right, rtol=1e-4, atol=1e-5)
    assert graphs > 0 and counter.frame_count == graphs
    torch._dynamo.reset()


DIFFERENT = {
    "rank": ({"r": 3}, "it has r=2, the file 3"),
    "number of experts": ({"num_experts": 2}, "it has num_experts=3, the file 2"),
    "scale": ({"lora_alpha": 8}, "it has lora_alpha=4, the file 8"),
    "bands": ({"kappa": 0.1}, "it has kappa=0.0078125, the file 0.1"),
    "temperature": ({"temperature": 1.0}, "it has temperature=0.7, the file 1.0"),
    "fewer layers": ({"target_modules": TARGETS[:1]}, "the file has no tensor .*to_k"),
    "more layers": ({"target_modules": [*TARGETS, "ff.net.2"]}, "the file's tensor .*ff.net.2.* has no place in it"),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_what_differs_in_more_than_weights_is_refused(pipe, kind, files, difference, tmp_path):
    settings, message = DIFFERENT[difference]
    other = write_adapter(kind, tmp_path / "other", seed=2, **settings)
    fera.load_adapter(pipe, files["ink"])
    before, drawn = state(pipe), draw(pipe)
    with pytest.raises(FeraError, match=f"cannot replace adapter 'default' of .* in place: {message}.*without hotswap"):
        fera.load_adapter(pipe, other, hotswap=True)
    assert all(torch.equal(*pair) for pair in zip(before, state(pipe), strict=True))
    assert torch.equal(draw(pipe), drawn)


def test_nothing_to_replace_is_an_error(pipe, files):
    before = state(pipe)
    with pytest.raises(FeraError, match=r"there is no such FeRA adapter \(there are: none\); load it without hotswap"):
        fera.load_adapter(pipe, files["ink"], hotswap=True)
    fera.load_adapter(pipe, files["ink"], adapter_name="ink")
    with pytest.raises(FeraError, match=r"'neon' of .*there is no such FeRA adapter \(there are: ink\)"):
        fera.load_adapter(pipe, files["neon"], adapter_name="neon", hotswap=True)
    fera.unload(pipe)
    assert all(torch.equal(*pair) for pair in zip(before, state(pipe), strict=True))


def test_the_adapter_of_another_base_is_refused_unless_meant(pipe, kind, files, tmp_path):
    other = make_pipeline(kind)
    with torch.no_grad():
        for parameter in denoiser_of(other).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    fera.save_adapter(add_adapter(other, seed=3), tmp_path / "other")
    fera.load_adapter(pipe, files["ink"])
    drawn = draw(pipe)
    with pytest.raises(FeraError, match="in place: the adapter was trained on another base"):
        fera.load_adapter(pipe, tmp_path / "other", hotswap=True)
    assert torch.equal(draw(pipe), drawn)
    fera.load_adapter(pipe, tmp_path / "other", hotswap=True, allow_other_base=True)
    assert not torch.equal(draw(pipe), drawn)


def test_of_two_denoisers_both_are_replaced_or_none(files, kind, tmp_path):
    from fera.adapters.file import open_adapter
    from fera.pipelines.hotswap import swap_adapters

    pipes = {name: make_pipeline(kind) for name in ("high", "low")}
    models = {name: denoiser_of(pipe) for name, pipe in pipes.items()}
    for model in models.values():
        fera.load_adapter(model, files["ink"])
    drawn = {name: draw(pipe) for name, pipe in pipes.items()}
    wider = write_adapter(kind, tmp_path / "wider", r=3)
    sources = {"high": open_adapter(files["neon"]), "low": open_adapter(wider)}
    with pytest.raises(FeraError, match="'default' of low in place: it has r=2, the file 3"):
        swap_adapters(models, sources, "default")
    assert all(torch.equal(draw(pipe), drawn[name]) for name, pipe in pipes.items())
    swap_adapters(models, {name: open_adapter(files["neon"]) for name in models}, "default")
    assert not any(torch.equal(draw(pipe), drawn[name]) for name, pipe in pipes.items())


def test_a_training_adapter_stays_one(kind, files):
    pipe = add_adapter(make_pipeline(kind), seed=5)
    denoiser = denoiser_of(pipe)
    fera.load_adapter(pipe, files["ink"], hotswap=True)
    layers = [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
    assert all(layer.lora_A["default"].weight.requires_grad for layer in layers)
    assert not adapter_configs(denoiser)["default"].inference_mode
