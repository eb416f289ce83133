"""Similarity to real pictures and drift from the base."""

import math

import pytest
import torch
from adapter_cases import add_adapter
from evaluation_cases import quick_settings, write_judge
from PIL import Image
from tiny import COLORS, make_sd_pipeline
from transformers import BertConfig, Dinov2Config, Dinov2Model

import fera
from fera.data.tensors import to_tensor
from fera.errors import FeraError
from fera.evaluation import evaluate, load_judge
from fera.evaluation.closeness import drift_of, similarities
from fera.features.networks import load_dinov2


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "dinov2"
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=4)
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_similarities_by_hand():
    generated = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    real = torch.tensor([[3.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    found = similarities(generated, ["a", "b", "c"], real, ["a", "a", "b"])
    assert found[0] == pytest.approx(0.5)  # the mean of 1 and 0
    assert found[1] == pytest.approx(0.0) and found[2] is None


def test_drift_by_hand():
    base = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    adapted = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert drift_of(adapted, base) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert drift_of(base, base) == 0.0


def test_dinov2_is_the_models_first_token(dinov2):
    picture = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    features = load_dinov2(str(dinov2)).features([to_tensor(picture, (40, 40))[None]])
    assert features.shape == (1, 16) and features.norm() == pytest.approx(1)
    # By transformers' own arithmetic of a picture that already has the size: mean and deviation of ImageNet.
    pixels = to_tensor(picture, (64, 64))[None]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    prepared = ((pixels + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    token = Dinov2Model.from_pretrained(dinov2).eval()(pixel_values=prepared).last_hidden_state[:, 0]
    exact = load_dinov2(str(dinov2)).features([pixels])
    torch.testing.assert_close(exact, torch.nn.functional.normalize(token, dim=1))


def test_similarity_and_drift_on_dinov2(image_folder, tmp_path, dinov2):
    pipe = add_adapter(make_sd_pipeline())
    settings = quick_settings(features="dinov2", dinov2_model=str(dinov2), drift_prompts=["a chair", "the sea"])
    told = []
    found = evaluate(
        pipe, image_folder, settings, output=tmp_path / "out", judge=None, progress=lambda *step: told.append(step)
    )
    each = [picture.similarity for picture in found.pictures]
    assert len(each) == len(COLORS) and found.similarity == pytest.approx(sum(each) / len(each))
    assert 0 < found.drift <= 2 and "dinov2" in found.networks["drift"] == found.networks["similarity"]
    with Image.open(tmp_path / "out" / "drift.png") as sheet:
        assert sheet.width > sheet.height
    assert ("drift pictures with the adapter", 2, 2) in told and ("drift pictures without it", 2, 2) in told
    # The adapter is on as before, and the same pipeline asleep has nothing to draw without.
    assert evaluate(pipe, image_folder, settings, judge=None).drift == pytest.approx(found.drift, abs=1e-6)
    fera.set_adapters(pipe, [], [])
    asleep = evaluate(pipe, image_folder, settings, judge=None)
    assert asleep.drift is None and "no adapter" in asleep.reasons["drift"]


def test_the_judge_tells_them_too(image_folder, tmp_path):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors"))
    found = evaluate(
        add_adapter(make_sd_pipeline()), image_folder, quick_settings(drift_prompts=["a chair"]), judge=judge
    )
    assert found.similarity is not None and found.drift > 0 and found.networks["drift"] == judge.name


def test_without_features_the_reasons_say_so(image_folder):
    found = evaluate(
        add_adapter(make_sd_pipeline()), image_folder, quick_settings(drift_prompts=["a chair"]), judge=None
    )
    assert found.drift is None and found.similarity is None
    assert "judge" in found.reasons["drift"] and "judge" in found.reasons["similarity"]


def test_prompts_that_the_folder_lacks(image_folder, dinov2):
    settings = quick_settings(features="dinov2", dinov2_model=str(dinov2), prompts=("a ship",))
    found = evaluate(make_sd_pipeline(), image_folder, settings, judge=None)
    assert found.similarity is None and "no picture of any" in found.reasons["similarity"]
    assert found.reasons["drift"] == "no drift_prompts were given"


def test_what_is_no_dinov2_is_an_error(tmp_path):
    with pytest.raises(FeraError, match="`features` dinov2: cannot load"):
        load_dinov2(str(tmp_path / "nowhere"))
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(FeraError, match="type bert"):
        load_dinov2(str(tmp_path / "bert"))


@pytest.mark.parametrize(("name", "value"), [("drift_prompts", ()), ("drift_prompts", "a cat")])
def test_bad_settings_are_named(name, value):
    with pytest.raises(FeraError, match=name):
        quick_settings(**{name: value})


def test_drift_needs_pictures():
    with pytest.raises(FeraError, match="images_per_prompt"):
        quick_settings(drift_prompts=["a cat"], images_per_prompt=0)
