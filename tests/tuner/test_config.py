"""Settings of an adapter: defaults, ranges, what cannot be routed, files, and that a config is never changed."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model, inject_adapter_in_model
from tuner_cases import config

from fera import FeraConfig, FeraError


def test_defaults():
    default = FeraConfig()
    assert default.peft_type == PeftType.FERA == "FERA"
    assert (default.r, default.num_experts, default.num_bands) == (4, 3, 3)
    assert (default.kappa, default.temperature, default.router_features) == (1 / 128, 0.7, 64)
    assert default.lora_alpha == 12  # a uniform gate is then a LoRA of rank 12 at scale 1
    assert FeraConfig(r=8, num_experts=5).lora_alpha == 40
    assert FeraConfig(r=8, lora_alpha=3).lora_alpha == 3
    assert isinstance(default, LoraConfig)


def test_layers_of_other_ranks_keep_the_scale_unless_an_alpha_is_given():
    config = FeraConfig(r=4, num_experts=3, rank_pattern={"to_k": 2, "conv1": 1}, alpha_pattern={"conv1": 5})
    assert config.lora_alpha / config.r == config.alpha_pattern["to_k"] / config.rank_pattern["to_k"] == 3
    assert config.alpha_pattern == {"to_k": 6, "conv1": 5}
    # What is given stays: files of adapters name their alpha.
    assert FeraConfig(r=4, lora_alpha=12, rank_pattern={"to_k": 2}).alpha_pattern == {}


RANGES = {
    "r": [0, -1, 1.5, "4", True, None],
    "num_experts": [0, -2, 3.0, "3", True, None],
    "num_bands": [1, 0, 2.0, "3", True, None],
    "router_features": [0, 1.5, "64", True, None],
    "kappa": [0, -0.1, 1.5, math.nan, math.inf, "0.1", None, True],
    "temperature": [0, -1, math.nan, math.inf, "0.7", None, True],
    "lora_alpha": [0, -1, math.nan, math.inf, "8", True],
    "lora_dropout": [-0.1, 1.0, 1.5, math.nan],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RANGES.items() for value in values])
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ValueError) as raised:
        FeraConfig(**{name: value})
    assert isinstance(raised.value, FeraError)
    assert name in str(raised.value) and repr(value) in str(raised.value)


@settings(max_examples=60, deadline=None)
@given(
    r=st.integers(-2, 5),
    num_experts=st.integers(-2, 5),
    num_bands=st.integers(-1, 7),
    kappa=st.floats(-0.5, 1.5),
    temperature=st.floats(-1, 5),
)
def test_a_config_is_valid_or_names_what_is_not(**values):
    wrong = [name for name in ("r", "num_experts") if values[name] < 1]
    wrong += ["num_bands"] * (values["num_bands"] < 2)
    wrong += ["kappa"] * (not 0 < values["kappa"] <= 1)
    wrong += ["temperature"] * (not values["temperature"] > 0)
    if not wrong:
        assert FeraConfig(**values).lora_alpha == values["r"] * values["num_experts"]
        return
    with pytest.raises(FeraError) as raised:
        FeraConfig(**values)
    assert any(f"{name} must" in str(raised.value) and repr(values[name]) in str(raised.value) for name in wrong)


@pytest.mark.parametrize(
    ("name", "value"), [("rank_pattern", {"to_q": 0}), ("rank_pattern", {"to_q": -2}), ("alpha_pattern", {"to_q": 0})]
)
def test_patterns_out_of_range_are_named(name, value):
    with pytest.raises(FeraError, match=rf"{name}\['to_q'\] must be above 0"):
        FeraConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("layer_replication", [(0, 1)]),
        ("target_parameters", ["weight"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "orthogonal"),
        ("init_lora_weights", "mica"),
    ],
)
def test_settings_of_lora_that_cannot_be_routed_are_refused(name, value):
    with pytest.raises(FeraError, match=f"{name}=.*cannot be routed"):
        FeraConfig(**{name: value})


@pytest.mark.parametrize("name", ["velora_config", "monteclora_config", "kasa_config"])
def test_other_variants_of_lora_are_refused(name):
    # Each of them is an object of PEFT that puts a variant of its own in the layer.
    import peft

    kind = {"velora_config": "VeloraConfig", "monteclora_config": "MontecloraConfig", "kasa_config": "KasaConfig"}[name]
    with pytest.raises(FeraError, match=f"{name}=.*cannot be routed"):
        FeraConfig(**{name: getattr(peft, kind)()})


@pytest.mark.parametrize("value", [True, False, "gaussian"])
def test_usual_initializations_are_taken(value, tiny_unet):
    """As PEFT's own LoRA of the whole rank, from the same random numbers."""
    torch.manual_seed(0)
    routed = get_peft_model(tiny_unet(), config(init_lora_weights=value)).state_dict()
    settings = {"r": 6, "lora_alpha": 6, "target_modules": config().target_modules, "init_lora_weights": value}
    torch.manual_seed(0)
    plain = get_peft_model(tiny_unet(), LoraConfig(**settings)).state_dict()
    names = [name for name in plain if ".lora_A." in name]
    deviations = [torch.stack([state[name].std() for name in names]).mean() for state in (routed, plain)]
    assert names and torch.isclose(*deviations, rtol=0.1)
    assert all(bool(routed[name].any()) == bool(plain[name].any()) for name in plain if ".lora_B." in name)


def test_a_newer_format_is_refused():
    with pytest.raises(FeraError, match="format version 3, this fera reads up to 2: upgrade fera"):
        FeraConfig(format_version=3)
    with pytest.raises(FeraError, match="format version x"):
        FeraConfig(format_version="x")


def test_a_file_gives_the_same_config(tmp_path):
    original = FeraConfig(
        r=3, num_experts=2, num_bands=4, kappa=0.05, temperature=0.3, router_features=8, target_modules=["to_q"]
    )
    original.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, FeraConfig)
    expected = original.to_dict() | {"target_modules": {"to_q"}}
    # PEFT marks a config that comes from a file as one for inference.
    assert loaded.to_dict() | {"inference_mode": False} == expected | {"inference_mode": False}
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "FERA" and written["format_version"] == 2


@pytest.mark.parametrize("inject", [get_peft_model, lambda m, c: inject_adapter_in_model(c, m)])
@pytest.mark.parametrize("targets", [["to_q", "to_k"], None])
def test_a_config_serves_two_bases_and_is_not_changed(tiny_unet, tiny_sd3_transformer, inject, targets):
    shared = config(target_modules=targets)
    before = copy.deepcopy(shared.to_dict())
    for base in (tiny_unet(), tiny_sd3_transformer()):
        inject(base, shared)
        assert base.fera is not None
    after = shared.to_dict()
    # get_peft_model notes the model's name and class in the config it is given, whatever the tuner.
    for noted in ("base_model_name_or_path", "auto_mapping", "task_type"):
        before.pop(noted, None), after.pop(noted, None)
    assert after == before


def test_without_targets_the_defaults_of_the_class_are_adapted(tiny_unet):
    model = get_peft_model(tiny_unet(), config(target_modules=None))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    ends = {name.removesuffix(".0").rpartition(".")[2] for name in adapted}
    assert {"to_q", "to_k", "to_v", "to_out", "conv1", "conv2", "time_emb_proj", "proj_in"} <= ends
    assert not ends & {"conv_in", "conv_out", "proj", "linear_1"}


def test_every_number_reaches_the_model(tiny_unet):
    model = get_peft_model(
        tiny_unet(), config(r=3, num_experts=5, num_bands=4, kappa=0.25, temperature=0.2, router_features=7)
    )
    gate = model.base_model.model.fera
    router, bands = gate.router["default"], gate.inputs["default"].bands
    assert router.hidden.weight.shape == (7, 4) and router.output.weight.shape == (5, 7)
    assert router.temperature == 0.2 and bands.num_bands == 4 and bands.kappa == 0.25
    layer = model.base_model.model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert layer.lora_A["default"].weight.shape == (15, 32)
    assert layer.scaling["default"] == pytest.approx(4 / 3)
    assert torch.count_nonzero(layer.lora_B["default"].weight) == 0
