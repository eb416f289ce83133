"""LoRA in text encoders of every kind, against the pipeline itself with PEFT's stock LoRA in the same encoder."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from trained_calls import CAPTION, CPU, Recorder, draw, pipe_of, told
from trained_cases import CASES
from training_cases import run_config

from fera import FeraError
from fera.adapters.text.encoders import ENCODER, text_encoders
from fera.adapters.text.kinds import kind_of
from fera.adapters.text.lora import lora_layers
from fera.models.families import family_of
from fera.models.prompts import prompt_settings
from fera.training.start.encoders import free_encoders
from fera.training.trained.text import TextTraining, check_text_training

# Names of attention layers of each kind, as a pattern of PEFT's.
STOCK = {
    "CLIP": r".*\.(q_proj|k_proj|v_proj|out_proj)",
    "T5": r".*\.SelfAttention\.(q|k|v|o)",
    "language model": r"(?!.*(vision|visual)).*\.(q_proj|k_proj|v_proj|o_proj)",
    "BERT": r".*\.attention\.(self\.(query|key|value)|output\.dense)",
    "ChatGLM": r".*\.(query_key_value|self_attention\.dense)",
}


def encoders_of(pipe):
    """Text encoders that can be trained."""
    family = family_of(pipe)
    names = [name for name in family.text_components if ENCODER.fullmatch(name)]
    return [name for name in names if name in text_encoders(pipe) and name not in family.untrained]


def random_loras(encoders):
    generator = torch.Generator().manual_seed(1)
    for encoder in encoders:
        for layer in lora_layers(encoder, "default").values():
            for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                matrix.data = 0.3 * torch.randn(matrix.shape, generator=generator)


def put_stock_lora(encoder, other):
    """Inject PEFT's LoRA by a pattern, and give it the weights of fera's."""
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=STOCK[kind_of(encoder).name]), encoder)
    layers = lora_layers(other, "default")
    weights = {
        f"{path}.lora_{side}.weight": getattr(layer, f"lora_{side}")["default"].weight.detach()
        for path, layer in layers.items()
        for side in "AB"
    }
    loaded = set_peft_model_state_dict(encoder, weights)
    assert not loaded.unexpected_keys and not [key for key in loaded.missing_keys if "lora" in key]


def training_of(pipe, names, tmp_path):
    settings = {"train_text_encoder": True, "r": 2, "lora_alpha": 4, "encoders": names}
    config = run_config("b", tmp_path, tmp_path / "run", text_encoder=settings)
    return TextTraining(pipe, family_of(pipe), config, CPU)


# Of this file: among plugins, one that another file names would take its place.
@pytest.fixture
def pipe(case, monkeypatch):
    return pipe_of(case, monkeypatch)


@pytest.fixture
def trainable(pipe):
    """A pipeline whose text encoders can be trained."""
    family = family_of(pipe)
    if family.sound or (family.pairs and family.pairs.encode) or not encoders_of(pipe):
        pytest.skip("refused, which other tests are about")
    return pipe


LARGE = {"ideogram4"}  # a second and more, by the count of its layers
EACH = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.variant or case.name in LARGE)) for case in CASES
]
APART = {"flux", "hidream", "hunyuan-dit", "hunyuan-video", "kandinsky5", "kandinsky5-video", "sd3"}


@pytest.mark.parametrize("case", EACH)
def test_a_prediction_is_the_pipelines_with_stock_loras(trainable, case, tmp_path):
    """All text encoders learn; before the first step nothing has changed."""
    family, names = family_of(trainable), encoders_of(trainable)
    with torch.no_grad():
        cached = told(trainable, case, [CAPTION])
        base = family.encode(trainable, [CAPTION], CPU)
        text = training_of(trainable, names, tmp_path)
        start = text.encode([CAPTION], cached)
    assert bool(family.encode_part) == (case.name.startswith("flux-") or case.name in APART)
    assert text.names == tuple(names) and base.keys() <= start.keys()
    for name, value in start.items():
        torch.testing.assert_close(value, cached[name])
    random_loras([getattr(trainable, name) for name in names])
    doubled = {name: torch.cat([value, value]) for name, value in cached.items()}
    learned = {name: value[1:] for name, value in text.encode([CAPTION, CAPTION], doubled).items()}
    stock = case.pipeline()
    stock.set_progress_bar_config(disable=True)
    for name in names:
        put_stock_lora(getattr(stock, name), getattr(trainable, name))
    with torch.no_grad(), Recorder(stock) as seen:
        draw(stock, case)
    for latent, level, output in zip(seen.latents, seen.levels, seen.outputs, strict=True):
        with torch.no_grad():
            prediction = family.predict(seen.denoiser, latent[: len(output)], level, learned)
        torch.testing.assert_close(prediction, output, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(learned[name], base[name]) for name in base)
    sum(value.square().sum() for value in learned.values() if value.requires_grad).backward()
    for name in names:
        weights = [weight for key, weight in getattr(trainable, name).named_parameters() if "lora_A" in key]
        assert any(weight.grad is not None and weight.grad.any() for weight in weights), name


@pytest.mark.parametrize("case", [case for case in CASES if case.name in APART], ids=lambda case: case.name)
def test_each_alone_makes_its_part(trainable, case, tmp_path):
    """The other text encoders are gone, and what they made is kept."""
    names, captions = encoders_of(trainable), [CAPTION, "the sun and moon and a green tree"]
    with torch.no_grad():
        cached = family_of(trainable).encode(trainable, captions, CPU)
    for name in names:
        pipe = copy.copy(trainable)
        text = training_of(pipe, [name], tmp_path)
        assert name in text.needed and set(names) - set(text.needed)
        free_encoders(pipe, family_of(pipe), text.needed)
        found = text.encode(captions, cached)
        assert found.keys() == cached.keys() and any(value.requires_grad for value in found.values())
        for key, value in found.items():
            torch.testing.assert_close(value, cached[key])


# Of pipelines by their own function for prompts, without fera.
ENCODED = {
    "flux": ("text_encoder_2", lambda pipe, caption: pipe.encode_prompt(caption, None)[0]),
    "sd3": ("text_encoder_3", lambda pipe, caption: pipe.encode_prompt(caption, None, None)[0]),
    "pixart-alpha": ("text_encoder", lambda pipe, caption: pipe.encode_prompt(caption, False)[0]),
    "sana": ("text_encoder", lambda pipe, caption: pipe.encode_prompt(caption, False, **prompt_settings(pipe))[0]),
    "wan": ("text_encoder", lambda pipe, caption: pipe.encode_prompt(caption, max_sequence_length=512)[0]),
    "qwen-image": ("text_encoder", lambda pipe, caption: pipe.encode_prompt(caption)[0]),
    "z-image": ("text_encoder", lambda pipe, caption: pipe.encode_prompt(caption)[0][0][None]),
}


@pytest.mark.parametrize("name", ENCODED)
def test_gradients_are_those_through_the_pipelines_own_function(name, tmp_path):
    case = next(case for case in CASES if case.name == name)
    encoder, encode = ENCODED[name]
    pipe, stock = case.pipeline(), case.pipeline()
    cached = {key: value.detach() for key, value in family_of(pipe).encode(pipe, [CAPTION], CPU).items()}
    text = training_of(pipe, [encoder], tmp_path)
    random_loras([getattr(pipe, encoder)])
    put_stock_lora(getattr(stock, encoder), getattr(pipe, encoder))
    key = "cap_feats" if name == "z-image" else "encoder_hidden_states"
    found, expected = text.encode([CAPTION], cached)[key], encode(stock, CAPTION)
    torch.testing.assert_close(found, expected)
    ways = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    for value in (found, expected):
        (value * ways).sum().backward()
    own, others = lora_layers(getattr(pipe, encoder), "default"), lora_layers(getattr(stock, encoder), "default")
    assert own.keys() == others.keys() and len(own) >= 4
    for path, layer in own.items():
        for side in ("lora_A", "lora_B"):
            gradient, other = (getattr(one, side)["default"].weight.grad for one in (layer, others[path]))
            assert (gradient is None) == (other is None)  # of layers behind the states that are taken
            if gradient is not None:
                torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


# Refusals


def refusal(pipe, tmp_path, **sections):
    config = run_config("b", tmp_path, tmp_path / "run", **sections)
    with pytest.raises(FeraError) as caught:
        check_text_training(pipe, family_of(pipe), config, [])
    return str(caught.value)


LORA = {"text_encoder": {"train_text_encoder": True}}
TOKEN = {"tokens": {"placeholder_token": "<toy>", "initializer_token": "a"}}


def with_encoders(*names):
    return {"text_encoder": {"train_text_encoder": True, "encoders": list(names)}}


@pytest.mark.parametrize(
    ("name", "sections", "words"),
    [
        ("prx", LORA, ("no text encoder of a PRXPipeline", "text_encoder: its pipeline encodes captions without grad")),
        ("ernie-image", TOKEN, ("the section tokens is set", "without gradients")),
        ("longcat-image", LORA, ("without gradients",)),
        ("qwen-image-edit", LORA, ("reads captions together with the pictures that it is given",)),
        ("svd", LORA, ("a StableVideoDiffusionPipeline has no text encoder of its own",)),
        ("omnigen", LORA, ("a OmniGenPipeline reads captions together with the pictures",)),
        ("kolors", TOKEN, ("the vocabulary of a ChatGLMModel cannot grow",)),
        (
            "flux",
            with_encoders("text_encoder_3"),
            (
                "text_encoder.encoders names 'text_encoder_3', but a FluxPipeline has text_encoder (CLIP), "
                "text_encoder_2 (T5)",
            ),
        ),
        (
            "hunyuan-image",
            with_encoders("text_encoder_2"),
            ("reads only what stands in quotation marks", "it can train text_encoder"),
        ),
        (
            "pixart-alpha",
            {"text_encoder": {"train_text_encoder": True, "target_modules": ["to_q"]}},
            ("cannot put a LoRA into a T5EncoderModel: it has no layers whose names end in to_q", "are q, k, v, o"),
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(name, sections, words, tmp_path):
    case = next(case for case in CASES if case.name == name)
    message = refusal(case.pipeline(), tmp_path, **sections)
    assert all(word in message for word in words), message


def test_an_encoder_that_the_base_has_not(tmp_path):
    case = next(case for case in CASES if case.name == "sd3")
    pipe = case.pipeline()
    pipe.text_encoder_3 = None
    assert "text_encoder_3' of a StableDiffusion3Pipeline, which cannot be trained: the base has none" in refusal(
        pipe, tmp_path, **with_encoders("text_encoder_3")
    )


@pytest.mark.parametrize("name", ["prx", "ernie-image", "longcat-image"])
def test_refused_encoders_have_no_gradients_indeed(name):
    case = next(case for case in CASES if case.name == name)
    pipe = case.pipeline()
    conditions = family_of(pipe).encode(pipe, [CAPTION], CPU)
    assert not any(value.requires_grad for value in conditions.values())
