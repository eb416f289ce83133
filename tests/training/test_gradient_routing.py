"""`adapter.router = "gradient"`: from a configuration to a plain LoRA that is the adapter itself."""

import json

import pytest
import torch
from adapter_cases import add_adapter, denoiser_of, draw, make_pipeline, write_adapter
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import make_unet
from training_cases import assert_resumes, assert_same_adapter, log_of, run_config
from tuner_cases import fill, unet_inputs

import fera
from fera import FeraConfig, FeraError
from fera.adapters.file import open_adapter
from fera.adapters.inspection import describe
from fera.analysis.updates import expert_updates
from fera.cli.main import main
from fera.report.figures import gate_figures
from fera.report.log import read_log
from fera.training import load_config, to_toml, train
from fera.training.publishing.card import adapter_card

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
GRADIENT = {"router": "gradient", "ranks": [3, 1, 2]}


@pytest.fixture(scope="module")
def trained(tiny_sd_dir, tmp_path_factory):
    """A run of six steps, whole, and one that was cut off and went on; ranks differ."""
    folder = tmp_path_factory.mktemp("gradient")
    pictures = folder / "pictures"
    from PIL import Image

    pictures.mkdir()
    for number, color in enumerate(["red", "green", "blue", "yellow"]):
        Image.new("RGB", (16, 16), color).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a {color} rocket")
    adapter, settings = {**GRADIENT, "top_k": 1}, {"checkpointing_steps": 2}
    configs = [
        run_config(tiny_sd_dir, pictures, folder / name, adapter=adapter, train=settings) for name in ("one", "two")
    ]
    assert_resumes(*configs, 3, "loss", "updates")
    return configs[0]


def test_a_run_resumes_bit_for_bit_and_logs_who_was_updated(trained):
    updates = log_of(trained, "updates")
    assert len(updates) == 6 and all(
        sum(row) == pytest.approx(1, abs=2e-6) and len(row) == 3
        for row in updates  # of six digits each
    )
    assert len({tuple(row) for row in updates}) > 1
    assert not log_of(trained, "gates")
    experts = load_file(trained.output_dir / "adapter" / "adapter_model.safetensors")
    assert all(".experts_" in key for key in experts), "there is no router to save"


def test_inspect_tells_its_ranks(trained):
    described = describe(trained.output_dir)
    assert described["settings"]["ranks"] == [3, 1, 2] and described["settings"]["scale"] == 1
    assert "router_input" not in described["settings"], "nothing is read without a gate"
    parameters = described["parameters"]
    assert parameters["per_expert"] == [parameters["experts"] // 6 * rank for rank in (3, 1, 2)]
    assert parameters["router"] == 0


def test_its_export_is_the_adapter_itself(trained, tmp_path, capsys):
    for format in ("diffusers", "kohya"):
        assert main(["export", str(trained.output_dir), "--format", format, "--output", str(tmp_path / format)]) == 0
        (file,) = (tmp_path / format).iterdir()
        with safe_open(file, "pt") as opened:
            assert json.loads(opened.metadata()["fera_export"])["approximation"] == "exact"
        plain, routed = make_pipeline("sd"), make_pipeline("sd")
        plain.load_lora_weights(tmp_path / format, weight_name=file.name)
        fera.load_adapter(routed, trained.output_dir)
        assert torch.equal(draw(plain, guidance=2.0), draw(routed, guidance=2.0))
        assert not torch.equal(draw(routed), draw(make_pipeline("sd")))
    assert "exact" in capsys.readouterr().err


def test_it_is_pefts_own_lora_of_all_ranks():
    ours, plain = make_unet(), make_unet()
    inject_adapter_in_model(FeraConfig(target_modules=TARGETS, **GRADIENT), ours)
    inject_adapter_in_model(LoraConfig(r=6, lora_alpha=6, target_modules=TARGETS), plain)
    fill(ours), fill(plain)
    assert torch.equal(ours(**unet_inputs(2)).sample, plain(**unet_inputs(2)).sample)
    assert all(set(one.r.values()) == {6} for one in ours.modules() if isinstance(one, LoraLayer))


def test_it_merges_without_a_gate_and_fuses_as_a_plain_lora():
    pipe = add_adapter(make_pipeline("sd"), router="gradient")
    expected = draw(pipe)
    pipe.unet.fuse_lora()
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    pipe.unet.unfuse_lora()
    assert fera.merge(pipe).gate == (1.0,)
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    assert not hasattr(denoiser_of(pipe), "peft_config")
    model = get_peft_model(make_unet(), FeraConfig(target_modules=TARGETS, **GRADIENT))
    fill(model)
    before = model(**unet_inputs(2)).sample
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**unet_inputs(2)).sample, before, rtol=1e-4, atol=1e-5)
    assert not hasattr(merged, "fera")


def test_beside_a_routed_adapter_both_act_and_it_leaves_alone(tmp_path):
    alone = draw(add_adapter(make_pipeline("sd")))
    pipe = add_adapter(make_pipeline("sd"))
    write_adapter("sd", tmp_path / "gradient", seed=1, router="gradient")
    fera.load_adapter(pipe, tmp_path / "gradient", adapter_name="steps")
    fera.set_adapters(pipe, ["default", "steps"])
    with fera.trace(pipe) as routings:
        both = draw(pipe)
    assert {routing.adapter for routing in routings} == {"default"} and not torch.allclose(both, alone)
    with pytest.raises(FeraError, match="no adapter can be fused while 'default' is loaded"):
        pipe.unet.fuse_lora(adapter_names=["steps"])
    fera.unload(pipe, "steps")
    fera.set_adapters(pipe, "default")
    assert torch.equal(draw(pipe), alone)
    fera.unload(pipe, "default")
    fera.load_adapter(pipe, tmp_path / "gradient", adapter_name="steps")
    with pytest.raises(FeraError, match="nothing to trace: there is no FeRA adapter with a gate"), fera.trace(pipe):
        pass
    fera.unload(pipe)
    assert torch.equal(draw(pipe), draw(make_pipeline("sd")))


def test_a_loop_of_ones_own():
    model = get_peft_model(make_unet(), FeraConfig(r=2, num_experts=4, router="gradient", target_modules=TARGETS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    router = fera.route_updates(model, optimizer, top_k=2)
    for _ in range(2):
        model(**unet_inputs(2)).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(router.updates.sum()) == pytest.approx(2)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            moved = layer.lora_B["default"].weight.detach().abs().sum(dim=0).reshape(4, 2) > 0
            assert 2 <= int(moved.all(dim=1).sum()) <= 4 and torch.equal(moved.any(dim=1), moved.all(dim=1))
    with pytest.raises(FeraError, match="no adapter 'default' with router='gradient'"):
        fera.route_updates(get_peft_model(make_unet(), FeraConfig(target_modules=TARGETS)), optimizer)


def test_a_plain_lora_that_it_starts_from_is_what_it_adds(tiny_sd_dir, image_folder, tmp_path):
    lora = make_pipeline("sd")
    fill(get_peft_model(lora.unet, LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS))).save_pretrained(
        tmp_path / "lora"
    )
    adapter = {"router": "gradient", "r": 2, "start_from": str(tmp_path / "lora")}
    config = run_config(
        tiny_sd_dir, image_folder, tmp_path / "run", adapter=adapter, train={"steps": 1, "learning_rate": 1e-12}
    )
    train(config)
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, tmp_path / "run")
    torch.testing.assert_close(draw(pipe), draw(lora), rtol=1e-4, atol=1e-5)


def test_other_choices_of_k_are_another_run(trained, tmp_path):
    every = trained.model_copy(
        update={
            "output_dir": tmp_path / "every",
            "adapter": trained.adapter.model_copy(update={"top_k": 3}),
        }
    )
    train(every)
    assert all(row == [1, 1, 1] for row in log_of(every, "updates"))
    with pytest.raises(AssertionError):
        assert_same_adapter(trained, every)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"top_k": 2}}, 'top_k is for adapter.router = "gradient"'),
        ({"adapter": {"ranks": [1, 2]}}, 'ranks is for adapter.router = "gradient"'),
        ({"adapter": {"router": "gradient", "top_k": 4}}, "top_k is 4, but there are 3 experts"),
        ({"adapter": GRADIENT | {"r": 8}}, "leave adapter.r out"),
        ({"adapter": GRADIENT | {"rank_pattern": {"to_q": 2}}}, "leave adapter.rank_pattern out"),
        ({"adapter": {"router": "gradient", "temperature": 1.0}}, "no gate: leave adapter.temperature out"),
        ({"adapter": {"router": "gradient", "expert": {"peft_type": "LOHA"}}}, "leave adapter.expert out"),
        ({"adapter": {"router": "gradient"}, "train": {"optimizer": "adafactor"}}, "routes the steps of AdamW"),
        ({"adapter": {"router": "gradient"}, "train": {"router_lr_ratio": 1.0}}, "leave train.router_lr_ratio out"),
        ({"adapter": {"router": "gradient", "ranks": [2, 0]}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, sections, message):
    with pytest.raises(ValidationError, match=message):
        run_config(tmp_path, tmp_path, tmp_path / "run", **sections)


def test_ranks_are_a_flag_and_survive_the_resolved_configuration(tmp_path):
    flags = {"base": "b", "output_dir": str(tmp_path), "data.train_data_dir": "d", "adapter.router": "gradient"}
    config = load_config(None, flags | {"adapter.ranks": ["8", "2"]})
    assert config.adapter.ranks == [8, 2]
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config
    with pytest.raises(FeraError, match="flag --adapter.ranks"):
        load_config(None, flags | {"adapter.ranks": ["8", "two"]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": [2, 2]}, "ranks of their own are for router='gradient'"),
        ({"router": "gradient", "ranks": [2, True]}, "list of integers"),
        ({"router": "gradient", "ranks": [2, 2], "num_experts": 5}, "2 entries, but num_experts is 5"),
        ({"router": "gradient", "ranks": [2, 2], "r": 8}, "leave r out"),
        ({"router": "gradient", "expert": {"peft_type": "LOHA"}}, "leave `expert` out"),
    ],
)
def test_a_config_refuses_what_it_cannot_be(settings, message):
    with pytest.raises(FeraError, match=message):
        FeraConfig(**settings)


def test_an_export_of_it_takes_no_gate(tmp_path):
    folder = write_adapter("sd", tmp_path / "adapter", router="gradient")
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, folder)
    with pytest.raises(FeraError, match="plain LoRA already, and exact as one; leave `gate` out"):
        fera.merge(pipe, "uniform")


def test_analysis_report_and_card_tell_experts_of_unequal_ranks_apart(trained, tmp_path):
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, trained.output_dir)
    found = expert_updates(pipe)
    layers = [one for one in pipe.unet.modules() if isinstance(one, LoraLayer)]
    for expert, (start, end) in enumerate([(0, 3), (3, 4), (4, 6)]):
        squares = [
            (one.lora_B["default"].weight.flatten(1)[:, start:end] @ one.lora_A["default"].weight.flatten(1)[start:end])
            .double()
            .square()
            for one in layers
        ]
        norm = float(sum(square.sum() for square in squares)) ** 0.5
        assert float(found.norms["all"][expert]) == pytest.approx(norm, rel=1e-5)
    (figure,) = gate_figures(read_log(trained.output_dir / "log.jsonl"))
    assert figure.title == "Updates of the experts"
    assert "3 experts of ranks 3, 1, 2" in adapter_card(open_adapter(trained.output_dir))
