"""Whole evaluations of tiny pipelines: oracles, pairing, what is written, what is refused."""

import json

import pytest
import torch
from adapter_cases import add_adapter
from evaluation_cases import quick_settings, write_judge
from PIL import Image
from tiny import COLORS, make_clip, make_sd3_pipeline, make_sd_pipeline
from training_cases import run_config
from transformers import CLIPConfig, CLIPModel

import fera
from fera.errors import FeraError
from fera.evaluation import EvaluationSettings, evaluate, load_judge
from fera.evaluation.drawing import prompts_of
from fera.training import train


@pytest.fixture
def judge(tmp_path):
    return load_judge(write_judge(tmp_path / "judge.safetensors"))


def only_loss(pipe, folder, **settings):
    return evaluate(pipe, folder, quick_settings(images_per_prompt=0, **settings), judge=None)


def test_the_loss_is_that_of_training(tiny_sd_dir, image_folder, tmp_path):
    config = run_config(
        tiny_sd_dir,
        image_folder,
        tmp_path / "run",
        data={"validation_data_dir": image_folder},
        validation={"loss_samples": 8, "seed": 3},
        train={"steps": 2},
    )
    summary = train(config)
    pipe = make_sd_pipeline()
    before = only_loss(pipe, image_folder, seed=3)
    fera.load_adapter(pipe, tmp_path / "run")
    after = only_loss(pipe, image_folder, seed=3)
    assert before.loss == pytest.approx(summary.held_out_loss_before, rel=1e-5)
    assert after.loss == pytest.approx(summary.held_out_loss_after, rel=1e-5)


@pytest.mark.parametrize("make", [make_sd_pipeline, make_sd3_pipeline])
def test_bands_and_quarters_add_up(make, image_folder):
    found = only_loss(make(), image_folder, loss_samples=8, num_bands=4)
    assert len(found.samples) == 8
    for sample in found.samples:
        assert len(sample.bands) == 4 and min(sample.bands) >= 0
        assert sum(sample.bands) == pytest.approx(sample.loss, rel=1e-5)
    assert sum(found.loss_by_band) == pytest.approx(found.loss, rel=1e-5)
    assert sum(found.loss_by_timestep) / 4 == pytest.approx(found.loss, rel=1e-5)  # two samples each
    assert sorted(sample.position for sample in found.samples) == pytest.approx([(i + 0.5) / 8 for i in range(8)])


def test_quarters_without_samples_are_none(image_folder):
    found = only_loss(make_sd_pipeline(), image_folder, loss_samples=1)
    assert found.loss_by_timestep.count(None) == 3


def test_samples_and_pictures_pair_whatever_the_adapter_and_the_batch(image_folder):
    plain = evaluate(make_sd_pipeline(), image_folder, quick_settings(batch_size=1), judge=None)
    adapted = evaluate(add_adapter(make_sd_pipeline()), image_folder, quick_settings(batch_size=8), judge=None)
    key = [(sample.image, sample.timestep, sample.position) for sample in plain.samples]
    assert key == [(sample.image, sample.timestep, sample.position) for sample in adapted.samples]
    assert plain.pictures == adapted.pictures
    assert plain.loss != adapted.loss


def test_a_batch_equals_its_parts(image_folder):
    one, all_ = (evaluate(make_sd_pipeline(), image_folder, quick_settings(batch_size=n), judge=None) for n in (1, 8))
    assert [sample.loss for sample in one.samples] == pytest.approx([s.loss for s in all_.samples], rel=1e-4)
    assert one.sliced_wasserstein == pytest.approx(all_.sliced_wasserstein, rel=1e-2)


def test_a_sleeping_adapter_is_none(image_folder):
    pipe = add_adapter(make_sd_pipeline())
    adapted = only_loss(pipe, image_folder)
    fera.set_adapters(pipe, [])
    assert only_loss(pipe, image_folder).loss == only_loss(make_sd_pipeline(), image_folder).loss != adapted.loss


def test_everything_is_found_and_written(image_folder, tmp_path, judge):
    settings = quick_settings(images_per_prompt=2, resolution=32)
    told = []
    found = evaluate(
        make_sd_pipeline(),
        image_folder,
        settings,
        output=tmp_path / "out",
        cache=tmp_path / "cache",
        judge=judge,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert [picture.prompt for picture in found.pictures] == list(COLORS) * 2
    assert [picture.seed for picture in found.pictures] == list(range(8))
    for picture in found.pictures:
        with Image.open(tmp_path / "out" / picture.file) as image:
            assert image.size == (32, 32) and image.info["prompt"] == picture.prompt
    assert (tmp_path / "out" / "grid.png").exists()
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found.to_dict()
    assert found.style == "plain" and found.style_score == pytest.approx(1 / (1 + torch.e**-5), rel=1e-3)
    assert sum(found.style_shares.values()) == pytest.approx(1)
    assert found.concept_score == pytest.approx(sum(1 / p.concept_rank for p in found.pictures) / 8)
    assert found.fid >= 0 and found.kid is not None and set(found.sliced_wasserstein) == {"32", "16"}
    assert found.diversity_within_prompt > 0 and found.diversity_between_prompts > 0
    assert found.seconds_per_image >= found.seconds_per_step > 0
    assert found.networks["fid"] == judge.name
    assert set(found.reasons) == {"concept_score_other_styles", "text_score", "drift"}
    assert ("held-out samples", 8, 8) in told and ("pictures drawn", 8, 8) in told


def test_more_pictures_a_prompt_begin_with_the_same(image_folder):
    one = evaluate(make_sd_pipeline(), image_folder, quick_settings(), judge=None)
    two = evaluate(make_sd_pipeline(), image_folder, quick_settings(images_per_prompt=2), judge=None)
    assert two.pictures[: len(one.pictures)] == one.pictures


def test_without_a_judge_the_reasons_say_so(image_folder):
    found = evaluate(make_sd_pipeline(), image_folder, quick_settings(), judge=None)
    assert found.fid is None and found.style_score is None and found.sliced_wasserstein is not None
    assert "no judge" in found.reasons["fid"] and "no judge" in found.reasons["style_score"]
    nothing = only_loss(make_sd_pipeline(), image_folder)
    assert nothing.pictures == () and "no pictures were drawn" in nothing.reasons["fid"]


def test_strange_pictures_are_not_judged_but_measured_if_asked(image_folder, tmp_path):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors", reach=1e-3))
    auto = evaluate(make_sd_pipeline(), image_folder, quick_settings(), judge=judge)
    assert auto.fid is None and "emoji only" in auto.reasons["fid"] and auto.style_score is None
    asked = evaluate(make_sd_pipeline(), image_folder, quick_settings(features="judge"), judge=judge)
    assert asked.fid is not None and asked.style_score is None and asked.concept_score is None


def test_clip_scores_text(image_folder, tmp_path):
    text, tokenizer = make_clip()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text.config.to_dict(), vision_config=vision, projection_dim=8))
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    settings = quick_settings(features="clip", clip_model=str(tmp_path / "clip"))
    found = evaluate(make_sd_pipeline(), image_folder, settings, judge=None)
    assert -100 <= found.text_score <= 100
    assert found.fid >= 0 and "clip" in found.networks["fid"] and "fid" not in found.reasons


def test_a_network_that_cannot_be_had_is_an_error(image_folder, tmp_path):
    settings = quick_settings(features="clip", clip_model=str(tmp_path / "nowhere"))
    with pytest.raises(FeraError, match="`features` clip: cannot load"):
        evaluate(make_sd_pipeline(), image_folder, settings, judge=None)
    with pytest.raises(FeraError, match="needs a judge"):
        evaluate(make_sd_pipeline(), image_folder, quick_settings(features="judge"), judge=None)


def test_inception_without_its_package_is_an_error(image_folder, monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(FeraError, match="pip install torch-fidelity"):
        evaluate(make_sd_pipeline(), image_folder, quick_settings(features="inception"), judge=None)


def test_prompts_are_chosen_by_what_they_are():
    captions = [f"thing {number}" for number in range(20)]
    few = prompts_of(captions, EvaluationSettings(max_prompts=5))
    assert len(few) == 5 and set(few) == set(prompts_of(captions[::-1], EvaluationSettings(max_prompts=5)))
    assert set(few) <= set(prompts_of(captions, EvaluationSettings(max_prompts=9)))
    assert prompts_of(captions + captions, EvaluationSettings(max_prompts=None)) == captions
    assert prompts_of(captions, EvaluationSettings(prompts=("x", "x"))) == ["x", "x"]
    with pytest.raises(FeraError, match="no picture of the folder has a caption"):
        prompts_of(["", ""], EvaluationSettings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_samples", 0),
        ("num_bands", 1),
        ("kappa", 0.0),
        ("kappa", 1.5),
        ("prompts", ()),
        ("prompts", "a cat"),
        ("max_prompts", 0),
        ("images_per_prompt", -1),
        ("num_inference_steps", 0),
        ("guidance_scale", float("nan")),
        ("batch_size", 0),
        ("features", "dino"),
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(FeraError, match=name):
        EvaluationSettings(**{name: value})


def test_settings_in_a_pydantic_model_refuse_mistyped_keys():
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(EvaluationSettings)
    assert adapter.validate_python({"loss_samples": 3, "prompts": ["a"]}) == EvaluationSettings(
        loss_samples=3, prompts=("a",)
    )
    with pytest.raises(ValidationError, match="loss_sample"):
        adapter.validate_python({"loss_sample": 3})


def test_a_resolution_that_the_base_cannot_draw_is_refused(image_folder):
    with pytest.raises(FeraError, match="resolution is 33"):
        only_loss(make_sd_pipeline(), image_folder, resolution=33)


def test_a_pipeline_without_autoencoder_is_refused(image_folder):
    pipe = make_sd_pipeline()
    pipe.vae = None
    with pytest.raises(FeraError, match="no autoencoder"):
        only_loss(pipe, image_folder)
