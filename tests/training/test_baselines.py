"""Baselines in the trainer: plain PEFT adapters and full fine-tuning, in the loop that trains routed experts."""

import copy
import json

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import make_sd_pipeline
from training_cases import log_of, run_config

from fera.errors import FeraError
from fera.training import load_config, to_toml, train
from fera.training.trained.kinds import ADAPTER_NAME, adapter_of
from fera.training.trained.plain import plain_config

LORA = {"plain": {"peft_type": "LORA", "r": 2, "lora_alpha": 2}}
SCHEMES = [
    LORA,
    {"plain": {"peft_type": "LORA", "use_dora": True, "r": 2, "rank_pattern": {"to_q": 1}}},
    {
        "plain": {"peft_type": "LOHA", "r": 2, "alpha": 2},
        "blocks": ["up_blocks", "mid_block"],
        "target_modules": ["to_*"],
    },
    {"plain": {"peft_type": "LOKR", "r": 2, "alpha": 2}},
    {"plain": {"peft_type": "OFT", "r": 0, "oft_block_size": 8}},
    {"plain": {"peft_type": "IA3"}},
    {"full": True},
]


def name_of(adapter):
    plain = adapter.get("plain", {})
    return "full" if not plain else plain["peft_type"] + ("-dora" if plain.get("use_dora") else "")


def prediction(pipe):
    generator = torch.Generator().manual_seed(0)
    latent, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 32, generator=generator)
    with torch.no_grad():
        return pipe.unet.eval()(latent, torch.tensor([400.0, 20.0]), encoder_hidden_states=text).sample


@pytest.mark.parametrize("adapter", SCHEMES, ids=name_of)
def test_a_baseline_trains_saves_and_loads(tiny_sd_dir, image_folder, tmp_path, adapter):
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter=adapter, train={"steps": 3})
    (tmp_path / "resolved.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "resolved.toml") == config
    summary = train(config)
    assert summary.kappa is None and summary.parameters > 0
    assert len(log_of(config, "loss")) == 3 and not log_of(config, "gates") and not log_of(config, "router_lr")

    pipe = make_sd_pipeline()
    before = prediction(pipe)
    adapter_of(config.adapter).load(pipe, tmp_path / "run" / "adapter")
    loaded = prediction(pipe)
    assert not torch.equal(loaded, before)
    # The same folder through the library that owns the format.
    stock = make_sd_pipeline()
    if "full" in adapter:
        stock.unet = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "adapter")
    else:
        stock.unet = peft.PeftModel.from_pretrained(stock.unet, tmp_path / "run" / "adapter")
    torch.testing.assert_close(prediction(stock), loaded, rtol=0, atol=0)


@pytest.mark.parametrize("adapter", [LORA, {"full": True}], ids=name_of)
def test_a_resumed_run_is_the_uninterrupted_one(tiny_sd_dir, image_folder, tmp_path, adapter):
    whole = run_config(tiny_sd_dir, image_folder, tmp_path / "whole", adapter=adapter)
    train(whole)
    parts = run_config(tiny_sd_dir, image_folder, tmp_path / "parts", adapter=adapter, train={"steps": 3})
    train(parts)
    parts = parts.model_copy(update={"train": parts.train.model_copy(update={"steps": 6})})
    train(parts, resume=True)
    pipes = []
    for config in (whole, parts):
        pipes.append(make_sd_pipeline())
        adapter_of(config.adapter).load(pipes[-1], config.output_dir / "adapter")
    torch.testing.assert_close(prediction(pipes[0]), prediction(pipes[1]), rtol=0, atol=0)


def test_the_loop_is_that_of_one_expert(tiny_sd_dir, image_folder, tmp_path):
    """With one expert the gate is 1: FeRA is then a LoRA, and both see the same pictures, noise and timesteps."""
    losses = []
    for number, adapter in enumerate(({"r": 2, "num_experts": 1, "lora_alpha": 2.0}, LORA)):
        config = run_config(tiny_sd_dir, image_folder, tmp_path / str(number), adapter=adapter, train={"steps": 1})
        train(config)
        losses.append(log_of(config, "loss"))
    assert losses[0] == losses[1]  # both start as the base


def test_full_fine_tuning_trains_every_weight(tiny_sd_dir, image_folder, tmp_path):
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter={"full": True}, train={"steps": 2})
    base = make_sd_pipeline().unet
    summary = train(config)
    assert summary.parameters == sum(parameter.numel() for parameter in base.parameters())
    trained = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "adapter")
    changed = [not torch.equal(a, b) for a, b in zip(base.parameters(), trained.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)


def test_validation_pictures_are_drawn(tiny_sd_dir, image_folder, tmp_path):
    validation = {"prompts": ["a red rocket"], "num_inference_steps": 2, "loss_samples": 4}
    config = run_config(
        tiny_sd_dir, image_folder, tmp_path / "run", adapter=LORA, train={"steps": 1}, validation=validation
    )
    train(config)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


def test_loraplus_reaches_a_plain_lora_and_nothing_else(tiny_sd_dir, image_folder, tmp_path):
    settings = {"steps": 1, "loraplus_lr_ratio": 4.0}
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "lora", adapter=LORA, train=settings))
    with pytest.raises(FeraError, match="loraplus_lr_ratio"):
        train(run_config(tiny_sd_dir, image_folder, tmp_path / "full", adapter={"full": True}, train=settings))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"adapter.r": "8"}, "adapter.plain is a baseline without routed experts: leave adapter.r out"),
        ({"adapter.full": "true"}, "adapter.full is a baseline without routed experts: leave adapter.plain out"),
        ({"train.consistency_weight": "0.1"}, "set train.consistency_weight = 0"),
        ({"train.router_lr_ratio": "0.1"}, "leave train.router_lr_ratio out"),
    ],
)
def test_settings_that_would_be_ignored_are_errors(tmp_path, keys, message):
    flags = {"base": "x", "output_dir": "y", "data.train_data_dir": "z", "train.consistency_weight": "0"}
    with pytest.raises(FeraError, match=message):
        load_config(None, flags | {"adapter.plain": json.dumps(LORA["plain"])} | keys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4}, "adapter.plain needs peft_type, one of LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "got 'PREFIX_TUNING'"),
        ({"peft_type": "LORA", "lora_alfa": 4}, "LoraConfig has no setting 'lora_alfa'; did you mean 'lora_alpha'?"),
        ({"peft_type": "LORA", "target_modules": ["to_q"]}, "set adapter.target_modules"),
        ({"peft_type": "OFT", "r": 4, "oft_block_size": 8}, "adapter.plain: "),
    ],
)
def test_a_scheme_that_cannot_be_is_one_clear_error(settings, message):
    with pytest.raises(FeraError, match=message.replace("?", r"\?")):
        plain_config(settings)


def test_files_that_do_not_fit_are_refused(tiny_sd_dir, image_folder, tmp_path):
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter=LORA, train={"steps": 1})
    train(config)
    folder = tmp_path / "run" / "adapter"
    other = adapter_of(config.adapter.model_copy(update={"target_modules": ["to_q"]}))
    with pytest.raises(FeraError, match="is not of this adapter"):
        other.load(make_sd_pipeline(), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FeraError, match="cannot read the plain adapter"):
        adapter_of(config.adapter).load(make_sd_pipeline(), folder)
    with pytest.raises(FeraError, match="cannot read the denoiser"):
        adapter_of(config.adapter.model_copy(update={"plain": None, "full": True})).load(make_sd_pipeline(), folder)


def test_an_adapter_loads_into_the_layers_that_it_was_trained_in(tiny_sd_dir, image_folder, tmp_path):
    """Where the configuration names none: defaults change."""
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter=LORA, train={"steps": 1})
    trained = config.model_copy(update={"adapter": config.adapter.model_copy(update={"target_modules": ["to_q"]})})
    train(trained)
    pipe, other = make_sd_pipeline(), make_sd_pipeline()
    adapter_of(config.adapter).load(pipe, tmp_path / "run" / "adapter")
    adapter_of(trained.adapter).load(other, tmp_path / "run" / "adapter")
    torch.testing.assert_close(prediction(pipe), prediction(other), rtol=0, atol=0)


def test_a_plain_folder_loads_by_injection(tiny_sd_dir, image_folder, tmp_path):
    from safetensors.torch import load_file

    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter=LORA, train={"steps": 2})
    train(config)
    folder = tmp_path / "run" / "adapter"
    pipe, other = make_sd_pipeline(), make_sd_pipeline()
    adapter_of(config.adapter).load(pipe, folder)
    peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(folder), other.unet, ADAPTER_NAME)
    result = peft.set_peft_model_state_dict(other.unet, copy.deepcopy(load_file(folder / "adapter_model.safetensors")))
    assert not result.unexpected_keys
    torch.testing.assert_close(prediction(pipe), prediction(other), rtol=0, atol=0)
