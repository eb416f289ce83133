"""Captions reach the text encoders as prompts do: cleaned, cut and, where they are empty, as guidance has them."""

import re
from bisect import bisect_left
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma
from diffusers.utils import import_utils
from family_cases import FAMILY_CASES
from listeners import train
from trained_cases import CASES
from training_cases import run_config

from fera import FeraError
from fera.cli.main import main
from fera.config import DataConfig
from fera.data.cache.encoder import Encoder
from fera.data.caption_checks import check_cleaning, describe_limits, text_limits
from fera.data.checking import check_images, find_examples
from fera.data.example import Example
from fera.models.components import denoisers
from fera.models.families import family_of
from fera.training import to_toml

CPU = torch.device("cpu")
# Tokens that each pipeline reads of a prompt: CLIP's of these tiny ones 16, T5's and Gemma's as diffusers has it.
_SD = {"text_encoder": 16}
_SDXL = {"text_encoder": 16, "text_encoder_2": 16}
_FLUX = {"text_encoder": 16, "text_encoder_2": 512}
LIMITS = {
    **dict.fromkeys(
        ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline"), _SD
    ),
    **dict.fromkeys(
        ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
        _SDXL,
    ),
    **dict.fromkeys(("FluxPipeline", "FluxKontextPipeline", "FluxControlPipeline", "FluxFillPipeline"), _FLUX),
    "StableDiffusion3Pipeline": {"text_encoder": 16, "text_encoder_2": 16, "text_encoder_3": 256},
    "PixArtAlphaPipeline": {"text_encoder": 120},
    "PixArtSigmaPipeline": {"text_encoder": 300},
    **dict.fromkeys(("SanaPipeline", "SanaVideoPipeline", "SanaImageToVideoPipeline"), {"text_encoder": 300}),
    "AnimateDiffPipeline": _SD,
    "AuraFlowPipeline": {"text_encoder": 256},
    "BriaPipeline": {"text_encoder": 128},
    "BriaFiboPipeline": {"text_encoder": 3000},
    "ChromaPipeline": {"text_encoder": 512},
    **dict.fromkeys(("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"), {"text_encoder": 226}),
    "CogView3PlusPipeline": {"text_encoder": 224},
    "CogView4Pipeline": {"text_encoder": 1024},
    "HiDreamImagePipeline": dict.fromkeys(("text_encoder", *(f"text_encoder_{i}" for i in (2, 3, 4))), 128),
    "HunyuanDiTPipeline": {"text_encoder": 77, "text_encoder_2": 256},
    "KolorsPipeline": {"text_encoder": 256},
    **dict.fromkeys(("LTXPipeline", "LTXImageToVideoPipeline"), {"text_encoder": 128}),
    **dict.fromkeys(("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"), {"text_encoder": 512}),
    **dict.fromkeys(("WanPipeline", "WanImageToVideoPipeline"), {"text_encoder": 512}),
    "LuminaPipeline": {"text_encoder": 256},
    "MochiPipeline": {"text_encoder": 256},
}

# One pipeline of each class that trains.
MAKE = [
    pytest.param(make, id=name)
    for name, make in {
        **{name: make for name, (make, _) in FAMILY_CASES.items()},
        **{case.name: case.pipeline for case in CASES},
    }.items()
]


@pytest.fixture(params=FAMILY_CASES)
def case(request):
    make, call = FAMILY_CASES[request.param]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


def told(pipe, call, prompt):
    """What the denoiser is told in each call of a drawing by the pipeline itself, by name."""
    calls = []
    denoiser = next(iter(denoisers(pipe).values()))
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs | (kwargs.get("added_cond_kwargs") or {})), with_kwargs=True
    )
    try:
        pipe(prompt, num_inference_steps=2, output_type="latent", **{"height": 16, "width": 24} | call)
    finally:
        hook.remove()
    return calls


def encoded(pipe, captions):
    with torch.no_grad():
        return family_of(pipe).encode(pipe, captions, CPU)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_empty_caption_is_what_guidance_leads_away_from(case):
    """Also beside others: a batch of which some captions were dropped."""
    pipe, call = case
    together, alone = encoded(pipe, ["a red rocket", "", "a green tree"]), encoded(pipe, [""])
    if type(pipe).__name__ == "FluxPipeline":  # guidance only where it is asked for, and by two calls a step
        calls = told(pipe, call | {"true_cfg_scale": 2.0, "negative_prompt": ""}, "a red rocket")
        expected = {name: (calls[1][name][0], calls[0][name][0]) for name in together}
    else:
        calls = told(pipe, call | {"guidance_scale": 2.0}, "a red rocket")
        expected = {name: tuple(calls[0][name]) for name in together}
    for name, (unconditional, conditional) in expected.items():
        close(together[name][0], conditional)
        close(together[name][1], unconditional)
        close(alone[name][0], unconditional)


def test_sdxl_without_zeros_for_the_empty_prompt():
    """A setting of the pipeline, which has it in model_index.json."""
    make, call = FAMILY_CASES["sdxl"]
    pipe = make()
    assert not encoded(pipe, [""])["encoder_hidden_states"].any()
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    expected = told(pipe, call | {"guidance_scale": 2.0}, "a red rocket")[0]
    for name, value in encoded(pipe, [""]).items():
        assert value.any()
        close(value[0], expected[name][0])


@pytest.mark.parametrize("make", MAKE)
def test_what_is_cut_is_said_for_each_text_encoder(make):
    """A caption that is changed behind what an encoder reads is encoded alike, one that is changed before is not."""
    pipe = make()
    family = family_of(pipe)
    limits = {limit.encoder: limit.tokens for limit in text_limits(pipe, family, [])}
    assert limits == LIMITS.get(type(pipe).__name__, {})
    if not limits:
        return  # its pipeline puts words of its own around captions, or counts them its own way
    longest = max(limits.values())
    words = ["a"] * 3 * longest

    def cut(count: int) -> dict[str, str]:
        example = Example(Path("a.png"), " ".join(words[:count]))
        return {limit.encoder: limit.cut.get("a.png", "") for limit in text_limits(pipe, family, [example])}

    count = bisect_left(range(len(words)), True, key=lambda count: all(cut(count).values()))
    longer, last = " ".join(words[:count]), " ".join(words[: count - 1])
    for name, value in encoded(pipe, [longer, f"{longer} rocket"]).items():
        assert torch.equal(value[0], value[1]), f"{name}: all text encoders cut by now"
    changed = encoded(pipe, [last, f"{last[:-1]}rocket"])
    assert any(not torch.equal(*value) for value in changed.values()), "the longest one still reads the last word"


def test_lines_about_what_is_cut():
    pipe = FAMILY_CASES["flux"][0]()
    examples = [Example(Path("a.png"), "a red rocket " * 8), Example(Path("b.png"), "a tree")]
    limits = text_limits(pipe, family_of(pipe), examples)
    # 14 tokens beside the two special ones, and each of these words is one: four times three words and two more.
    assert len(pipe.tokenizer("a red rocket").input_ids) == 5
    assert limits[0].cut == {"a.png": "rocket a red rocket a red rocket a red r…"} and limits[1].cut == {}
    (line,) = describe_limits(limits)
    assert "captions cut at the 16 tokens that text_encoder reads: 1 (a.png), a.png from" in line
    assert line.endswith("Read whole by text_encoder_2")


@pytest.fixture
def cleaning(monkeypatch):
    """As where ftfy and beautifulsoup4 are installed: they take tags out, and have nothing to mend here."""
    monkeypatch.setattr(import_utils, "_ftfy_available", True)
    monkeypatch.setattr(import_utils, "_bs4_available", True)
    for module in (pipeline_pixart_alpha, pipeline_pixart_sigma):
        mended = SimpleNamespace(fix_text=lambda text: text)
        monkeypatch.setattr(module, "ftfy", mended, raising=False)
        monkeypatch.setattr(
            module,
            "BeautifulSoup",
            lambda text, features: SimpleNamespace(text=re.sub("<[^>]*>", "", text)),
            raising=False,
        )


@pytest.mark.parametrize("caption", ["a <sks> rocket", "A Red Rocket #3", "a red rocket"])
def test_captions_are_cleaned_as_prompts_are(case, cleaning, caption):
    pipe, call = case
    rows = told(pipe, call, caption)[0]
    for name, value in encoded(pipe, [caption]).items():
        close(value, rows[name])


@pytest.mark.parametrize("kind", ["pixart-alpha", "pixart-sigma"])
def test_a_trigger_word_that_is_cleaned_away_is_refused(kind, cleaning, image_folder, tmp_path, capsys):
    pipe = FAMILY_CASES[kind][0]()
    examples = [Example(Path("a.png"), "a <sks> rocket"), Example(Path("b.png"), "A Tree")]
    (line,) = check_cleaning(pipe, examples, "ohwx")
    assert "cleans, as it does prompts: 1 (a.png), a.png is read as 'a rocket'" in line
    assert check_cleaning(pipe, examples[1:], "ohwx") == []
    pipe.save_pretrained(tmp_path / "base")
    config = run_config(tmp_path / "base", image_folder, tmp_path / "run", data={"trigger_word": "<sks>"})
    with pytest.raises(FeraError, match="trigger_word is '<sks>', but PixArt.* removes it from prompts"):
        train(config)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert main(["data", "check", str(tmp_path / "config.toml")]) == 2
    assert "removes it from prompts" in " ".join(capsys.readouterr().out.split())


def test_cleaned_captions_are_cached_apart(cleaning, monkeypatch, image_folder, tmp_path):
    pipe = FAMILY_CASES["pixart-alpha"][0]()
    examples, _ = check_images(find_examples(image_folder, DataConfig(train_data_dir=image_folder)), skip_bad=False)
    encoder = Encoder(pipe, family_of(pipe), tmp_path, CPU, [(16, 16)], True, False, 0, lambda *told: None)
    cleaned = encoder.encode(examples).texts
    monkeypatch.setattr(import_utils, "_bs4_available", False)
    plain = encoder.encode(examples).texts
    assert len({*cleaned.values(), *plain.values()}) == 2 * len(cleaned) == 10


def test_without_the_packages_nothing_is_cleaned(monkeypatch):
    monkeypatch.setattr(import_utils, "_bs4_available", False)
    pipe = FAMILY_CASES["pixart-alpha"][0]()
    assert check_cleaning(pipe, [Example(Path("a.png"), "a <sks> rocket")], "<sks>") == []
