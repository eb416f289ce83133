"""`adapter.start_from`: experts that begin as a plain LoRA in any naming, or as an adapter of fera's."""

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline
from export_cases import CONVOLUTIONS
from models import chroma, flux, qwen_image
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import make_unet
from training_cases import log_of, power_cut, run_config
from tuner_cases import fill

import fera
from fera.config import AdapterConfig
from fera.errors import FeraError
from fera.export.writing import export_lora
from fera.models.components import denoisers
from fera.pipelines.base import load_base
from fera.pipelines.plain_loras import read_plain_lora
from fera.training import train
from fera.training.trained.kinds import adapter_of
from fera.training.trained.start_from import open_start

TARGETS = ["to_q", "to_out.0"]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd():
    return make_pipeline("sd")


def sd3():
    return make_pipeline("sd3")


def of(case):
    return lambda: quiet(case.make_pipeline())


CALL = {"prompt": PROMPTS, "num_inference_steps": 2, "output_type": "latent"}
NAMINGS = {
    "diffusers, Stable Diffusion": (sd, "diffusers", CALL, TARGETS),
    "kohya, Stable Diffusion, convolutions": (sd, "kohya", CALL, [*CONVOLUTIONS, *TARGETS]),
    "diffusers, Stable Diffusion 3": (sd3, "diffusers", CALL, TARGETS),
    "diffusers, FLUX.1": (of(flux), "diffusers", flux.CALL, TARGETS),
    "diffusers, Chroma": (of(chroma), "diffusers", chroma.CALL, TARGETS),
    "comfyui, Qwen-Image": (of(qwen_image), "comfyui", qwen_image.CALL, TARGETS),
}


def draw(pipe, call):
    return pipe(**call, generator=torch.Generator().manual_seed(0), return_dict=False)[0]


def started(pipe, source, **settings):
    """The pipeline with a fresh adapter of fera's that starts from a file, as training makes it."""
    config = AdapterConfig(start_from=str(source), **settings)
    name, denoiser = next(iter(denoisers(pipe).items()))
    adapter_of(config, open_start(config, pipe)).add(denoiser)
    assert getattr(pipe, name) is denoiser
    denoiser.eval()
    return pipe


def written(make, folder, format, targets):
    """A plain LoRA with weights that count, written in a naming."""
    pipe = make()
    name, denoiser = next(iter(denoisers(pipe).items()))
    denoiser.add_adapter(fera.FeraConfig(r=2, lora_alpha=5, target_modules=targets, component=name))
    fill(denoiser)
    fera.save_adapter(pipe, folder / "routed")
    return export_lora(folder / "routed", folder, "uniform", format=format).files[0]


@pytest.mark.parametrize(("make", "format", "call", "targets"), NAMINGS.values(), ids=NAMINGS)
def test_every_expert_is_the_lora(make, format, call, targets, tmp_path):
    """At the gates that its router has, which are not uniform: while experts are equal, no gate matters."""
    path = written(make, tmp_path, format, targets)
    stock = make()
    stock.load_lora_weights(str(path.parent), weight_name=path.name)
    bare = make()
    plain = draw(bare, call)
    pipe = started(bare, path, num_experts=4)
    with fera.trace(pipe) as steps:
        drawn = draw(pipe, call)
    torch.testing.assert_close(drawn, draw(stock, call), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn, plain, atol=1e-3)
    assert len(steps[0].gates[0]) == 4 and steps[0].gates.std() > 1e-3


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"r": 6, "lora_alpha": 3.0, "router": "uniform"}])
def test_weights_are_exact(tmp_path, settings):
    """PEFT's own folder, of ranks and alphas by layer; in float64, against W + s B A."""
    model = get_peft_model(
        make_unet(),
        LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=[*TARGETS, "conv1"],
            rank_pattern={"to_q": 1},
            alpha_pattern={"conv1": 2},
            init_lora_weights=False,
        ),
    )
    model.save_pretrained(tmp_path)
    pairs = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    pipe = started(sd(), tmp_path, **settings)
    layers = {name: layer for name, layer in pipe.unet.named_modules() if isinstance(layer, LoraLayer)}
    assert layers.keys() == pairs.keys()
    for name, layer in layers.items():
        down, up = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        added = layer.scaling["default"] * up.flatten(1) @ down.flatten(1) / 3  # a uniform gate of three experts
        expected = pairs[name].get_delta_weight("default").double().flatten(1)
        torch.testing.assert_close(added, expected, rtol=1e-5, atol=1e-7)
        assert layer.r["default"] == 3 * max(settings.get("r", 4), 1 if name.endswith("to_q") else 3)


def test_the_base_is_left_as_it_was(tmp_path):
    path = written(sd, tmp_path, "kohya", TARGETS)
    pipe = sd()
    pipe.unet.requires_grad_(False)
    names, before = [name for name, _ in pipe.unet.named_modules()], draw(pipe, CALL)
    pairs = read_plain_lora(pipe, "unet", path)
    assert {pair.rank for pair in pairs.values()} == {6} and all(name.endswith(("to_q", "to_out.0")) for name in pairs)
    assert [name for name, _ in pipe.unet.named_modules()] == names and not vars(pipe.unet).get("peft_config")
    assert not any(weight.requires_grad for weight in pipe.unet.parameters())
    assert torch.equal(draw(pipe, CALL), before)


def test_layers_beside_those_of_the_lora_start_fresh(tmp_path):
    path = written(sd, tmp_path, "diffusers", ["to_q"])
    stock = sd()
    stock.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe = started(sd(), path, target_modules=["to_*"], r=2)
    torch.testing.assert_close(draw(pipe, CALL), draw(stock, CALL), rtol=1e-4, atol=1e-5)
    layers = {name.split(".")[-1]: part for name, part in pipe.unet.named_modules() if isinstance(part, LoraLayer)}
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert ranks["to_q"] == 3 * 6 and ranks["to_k"] == 3 * 2


def test_a_run_goes_on_from_a_lora(tiny_sd_dir, image_folder, tmp_path):
    """It resumes, and the saved adapter needs no LoRA any more."""
    path = written(sd, tmp_path, "kohya", TARGETS)
    settings = {"start_from": str(path), "num_experts": 2}
    train_settings = {"steps": 3, "checkpointing_steps": 1, "learning_rate": 1e-3}
    data = {"validation_fraction": 0.5}
    straight = run_config(
        tiny_sd_dir, image_folder, tmp_path / "straight", adapter=settings, train=train_settings, data=data
    )
    train(straight)
    cut = run_config(tiny_sd_dir, image_folder, tmp_path / "cut", adapter=settings, train=train_settings, data=data)
    with power_cut(2):
        train(cut)
    train(cut, resume=True)
    assert log_of(cut, "loss") == log_of(straight, "loss")
    path.unlink()
    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, tmp_path / "cut")
    layers = [layer for layer in pipe.unet.modules() if isinstance(layer, LoraLayer)]
    halves = [layer.lora_B["default"].weight.chunk(2, dim=1) for layer in layers]
    assert any(not torch.allclose(one, other, atol=1e-6) for one, other in halves)  # experts have parted


def test_a_run_goes_on_from_an_adapter(tiny_sd_dir, image_folder, tmp_path):
    """Experts and router are those that were left; other settings are the new run's."""
    first = run_config(
        tiny_sd_dir,
        image_folder,
        tmp_path / "first",
        adapter={"r": 2, "num_experts": 2, "rank_pattern": {"to_q": 1}, "temperature": 0.5},
        data={"validation_fraction": 0.5},
    )
    train(first)
    settings = {"start_from": str(tmp_path / "first"), "lora_dropout": 0.1}
    second = run_config(
        tiny_sd_dir, image_folder, tmp_path / "second", adapter=settings, data={"validation_fraction": 0.5}
    )
    train(second)
    ended, began = log_of(first, "held_out_loss")[-1], log_of(second, "held_out_loss")[0]
    assert began == pytest.approx(ended, rel=1e-5) and log_of(second, "held_out_loss")[-1] != ended
    kept = fera.adapters.file.open_adapter(tmp_path / "second").config
    assert (kept.r, kept.num_experts, kept.temperature, kept.lora_dropout) == (2, 2, 0.5, 0.1)


def of_another_base(folder):
    return written(of(flux), folder, "diffusers", TARGETS)


def of_another_size(folder):
    pipe = sd()
    pipe.unet = make_unet(block_out_channels=(8, 16))
    pipe.unet.add_adapter(fera.FeraConfig(target_modules=TARGETS, component="unet"))
    fera.save_adapter(pipe, folder / "routed")
    return export_lora(folder / "routed", folder, "uniform", format="kohya").files[0]


def with_a_layer_too_many(folder):
    path = written(sd, folder, "diffusers", TARGETS)
    tensors = load_file(path)
    for key in [key for key in tensors if "down_blocks.1.attentions.0" in key]:
        tensors[key.replace("attentions.0", "attentions.7")] = tensors[key].clone()
    save_file(tensors, path, {"format": "pt"})
    return path


def truncated(folder):
    path = written(sd, folder, "kohya", TARGETS)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def dora(folder):
    get_peft_model(make_unet(), LoraConfig(r=2, target_modules=["to_q"], use_dora=True)).save_pretrained(folder)
    return folder


def routed_for_another(folder):
    pipe = sd()
    pipe.unet = make_unet(block_out_channels=(8, 16))
    pipe.unet.add_adapter(fera.FeraConfig(target_modules=TARGETS))
    fera.save_adapter(pipe, folder)
    return folder


MISTAKES = {
    "another base": (of_another_base, {}, "is of another base|does not fit|another base"),
    "another size": (of_another_size, {}, "no LoRA for this UNet2D.*: it does not fit .*size mismatch"),
    "a layer too many": (with_a_layer_too_many, {}, r"LoRA of another base.* no layer down_blocks\.1\.attentions\.7"),
    "truncated": (truncated, {}, "is no safetensors file that can be read|cannot be read"),
    "DoRA": (dora, {}, r"more than two matrices \(DoRA"),
    "nothing": (lambda folder: folder / "no.safetensors", {}, r"no adapter at .*no\.safetensors"),
    "other layers": (
        lambda folder: written(sd, folder, "kohya", TARGETS),
        {"target_modules": ["to_q"]},
        r"adapts .*to_out\.0, which adapter\.target_modules",
    ),
    "ranks": (
        lambda folder: written(sd, folder, "kohya", TARGETS),
        {"rank_pattern": {"to_q": 1}},
        "leave adapter.rank_pattern",
    ),
    "another scheme": (
        lambda folder: written(sd, folder, "kohya", TARGETS),
        {"expert": {"peft_type": "LOHA"}},
        "leave adapter.expert out",
    ),
}


@pytest.mark.parametrize(("make", "settings", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(make, settings, message, tmp_path):
    source = make(tmp_path)
    with pytest.raises(FeraError, match=rf"(?s)adapter\.start_from: .*({message})"):
        started(sd(), source, **settings)


def test_an_adapter_goes_on_as_it_is(tmp_path):
    pipe = add_adapter(sd(), r=2)
    fera.save_adapter(pipe, tmp_path)
    with pytest.raises(FeraError, match=r"adapter\.num_experts is 5, but .* goes on as it is, with 3: leave it out"):
        started(sd(), tmp_path, num_experts=5)
    assert torch.equal(draw(started(sd(), tmp_path, r=2), CALL), draw(pipe, CALL))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    with pytest.raises(FeraError, match="base"):
        started(sd(), routed_for_another(tmp_path))


def test_a_baseline_starts_fresh():
    with pytest.raises(ValueError, match=r"leave adapter\.start_from out"):
        AdapterConfig(plain={"peft_type": "LORA"}, start_from="x")
