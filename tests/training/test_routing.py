"""What the router of a training run reads, and how it starts."""

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from training_cases import log_of, run_config

import fera
from fera.adapters.file import open_adapter
from fera.errors import FeraError
from fera.method.settings import ROUTER_INPUTS
from fera.pipelines.base import load_base
from fera.training import train
from fera.training.telling.metrics import collapse


def run(base, pictures, output, **adapter):
    config = run_config(base, pictures, output, adapter={"r": 2, **adapter}, train={"steps": 2})
    train(config)
    return config


@pytest.mark.parametrize("router_input", ROUTER_INPUTS)
def test_every_input_trains_and_is_kept(tiny_sd_dir, image_folder, tmp_path, router_input):
    config = run(tiny_sd_dir, image_folder, tmp_path / "run", router_input=router_input, router_entropy=0.5)
    assert open_adapter(tmp_path / "run" / "adapter").config.router_input == router_input
    # The gates of the first step are those of the partition, whose mean entropy is what was asked for.
    assert log_of(config, "gate_entropy")[0] == pytest.approx(0.5, abs=0.3)
    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, tmp_path / "run")
    with fera.trace(pipe) as steps:
        pipe("a red rocket", num_inference_steps=2, output_type="latent")
    assert steps[0].gates.shape[1] == 3


def test_a_random_start_is_near_uniform_and_a_partition_is_not(tiny_sd_dir, image_folder, tmp_path):
    random = run(tiny_sd_dir, image_folder, tmp_path / "random", router_init="random")
    partition = run(tiny_sd_dir, image_folder, tmp_path / "partition", router_init="partition", router_entropy=0.3)
    assert log_of(random, "gate_entropy")[0] > 0.9
    assert log_of(partition, "gate_entropy")[0] < 0.7


@pytest.mark.parametrize("router", ["uniform", "rank_mask"])
def test_fixed_routers_train(tiny_sd_dir, image_folder, tmp_path, router):
    config = run(tiny_sd_dir, image_folder, tmp_path / "run", router=router, router_input="timestep", num_experts=4)
    gates = log_of(config, "gates")[0]
    assert gates[0] == pytest.approx(0.25)
    assert gates == sorted(gates, reverse=True)


def test_the_start_follows_the_seed_alone(tiny_sd_dir, image_folder, tmp_path):
    routers = []
    for name in ("one", "two"):
        run(tiny_sd_dir, image_folder, tmp_path / name, router_input="timestep")
        tensors = open_adapter(tmp_path / name / "adapter").tensors()
        routers.append({key: tensor for key, tensor in tensors.items() if ".router." in key})
    assert routers[0] and all(torch.equal(tensor, routers[1][key]) for key, tensor in routers[0].items())


def test_a_collapse_is_named():
    assert collapse({"loss": 1.0}) is None
    assert collapse({"gates": [1.0]}) is None
    assert collapse({"gates": [0.7, 0.2, 0.1]}) is None
    assert "expert 2 of 3 holds 0.91" in collapse({"gates": [0.05, 0.91, 0.04]})


def test_a_router_too_narrow_for_a_partition_is_an_error(tiny_sd_dir, image_folder, tmp_path):
    with pytest.raises(FeraError, match="router_features must be at least 8"):
        run(tiny_sd_dir, image_folder, tmp_path / "run", router_features=4)


def test_ranks_by_kind_of_layer_train_and_are_kept(tiny_sd_dir, image_folder, tmp_path):
    layers = {"target_modules": ["to_q", "to_out.0", "conv1"], "rank_pattern": {"conv1": 1, "to_out.0": 3}}
    run(tiny_sd_dir, image_folder, tmp_path / "run", **layers)
    adapter = open_adapter(tmp_path / "run" / "adapter")
    ranks = {"conv1": 3, "to_out.0": 9, "to_q": 6}  # of three experts
    seen = {
        (kind, tensor.shape[0])
        for key, tensor in adapter.tensors().items()
        for kind in ranks
        if key.endswith(f".{kind}.lora_A.weight")
    }
    assert seen == set(ranks.items())
    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, tmp_path / "run")
    scales = {layer.scaling["default"] for layer in pipe.unet.modules() if isinstance(layer, LoraLayer)}
    assert scales == {3.0}  # alpha is unset: all layers have the scale of one expert


def test_layers_by_patterns_train_resume_and_are_kept(tiny_sd_dir, image_folder, tmp_path):
    """Patterns overlap, and an adapter's file has them in another order: it names the layers."""
    layers = {
        "target_modules": ["to_*", "conv_out"],
        "exclude_modules": ["attn2.*"],
        "blocks": ["down_blocks.1-3", "up_blocks"],
        "rank_pattern": {"up_blocks.*": 3, "to_q": 1},
        "alpha_pattern": {"*.to_v": 12.0},
    }
    with pytest.raises(FeraError, match="`target_modules` that match nothing: conv_x"):
        run(tiny_sd_dir, image_folder, tmp_path / "none", **layers | {"target_modules": ["conv_x"]})
    run(tiny_sd_dir, image_folder, tmp_path / "run", **layers)
    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, tmp_path / "run")
    held = {name: layer for name, layer in pipe.unet.named_modules() if isinstance(layer, LoraLayer)}
    assert {name.split(".")[0] for name in held} == {"down_blocks", "up_blocks"}
    assert {name.split(".")[-2] for name in held} == {"attn1", "to_out"} and not any("attn2" in name for name in held)
    for name, layer in held.items():
        rank = 3 if name.startswith("up_") else 1 if name.endswith("to_q") else 2
        assert layer.r["default"] == 3 * rank, name
        assert layer.scaling["default"] == (12 / rank if name.endswith("to_v") else 3.0), name
