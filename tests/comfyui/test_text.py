"""LoRA of the text encoders and learned tokens on ComfyUI's own CLIP, beside the pipeline's encoders in diffusers."""

import copy

import pytest
import torch
from comfyui_clip import clip_of
from text_cases import TOKEN, add_text_adapter, make_pipeline, write_text_adapter

import fera
from fera import FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.patching import with_text

pytestmark = pytest.mark.comfyui

PROMPT = f"a {TOKEN} rocket, red"


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(kind):
    """ComfyUI reads SDXL's texts before the last but one of an encoder's layers, of which these have two."""
    pipe = make_pipeline(kind)
    torch.manual_seed(0)
    for name in ("text_encoder", "text_encoder_2") if kind == "sdxl" else ():
        encoder = getattr(pipe, name)
        config = encoder.config.from_dict(encoder.config.to_dict() | {"num_hidden_layers": 3})
        setattr(pipe, name, type(encoder)(config).eval())
    return pipe


@pytest.fixture(scope="module")
def clip(pipe, tmp_path_factory):
    return clip_of(pipe, tmp_path_factory.mktemp("tokenizers"))


@torch.no_grad()
def in_comfyui(clip, prompt):
    """What ComfyUI's node for prompts does."""
    encoded, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
    return encoded, pooled


@torch.no_grad()
def in_diffusers(pipe, prompt):
    encoded = pipe.encode_prompt(
        prompt, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return encoded[0], encoded[2] if len(encoded) > 2 else None


def is_the_same(clip, pipe, prompt, words):
    (one, pooled), (other, expected) = in_comfyui(clip, prompt), in_diffusers(pipe, prompt)
    # Behind the text each pads in its own way, which the text does not see.
    torch.testing.assert_close(one[:, :words], other[:, :words], rtol=1e-4, atol=1e-4)
    if expected is not None:
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def words_of(pipe, prompt):
    return int((torch.tensor(pipe.tokenizer(prompt).input_ids) != pipe.tokenizer.pad_token_id).sum())


def test_it_encodes_as_the_pipeline_does_and_as_with_the_adapter(kind, pipe, clip, tmp_path):
    """The bare encoders; then with LoRA and a token of three vectors; and the first CLIP as it was."""
    plain = "a red rocket"
    is_the_same(clip, pipe, plain, words_of(pipe, plain))
    before = in_comfyui(clip, PROMPT)[0]
    trained = add_text_adapter(copy.deepcopy(pipe), vectors=3)
    fera.save_adapter(trained, tmp_path / "toy")
    drawing = with_text(clip, read_adapter(tmp_path / "toy"), 1.0)
    for prompt in (plain, PROMPT, f"{TOKEN}{TOKEN} red"):
        is_the_same(drawing, trained, prompt, words_of(trained, prompt))
    assert not torch.equal(in_comfyui(drawing, PROMPT)[0], before)
    assert torch.equal(in_comfyui(clip, PROMPT)[0], before)


def test_the_token_of_two_adapters_and_a_weight(kind, pipe, clip, tmp_path):
    """Each knows its own word; one word within another's; and ComfyUI's weights of words go on."""
    words = {"toy": "<toy>", "toys": "<toy>s"}
    for name, word in words.items():
        fera.save_adapter(add_text_adapter(copy.deepcopy(pipe), token=word), tmp_path / name)
    first = with_text(clip, read_adapter(tmp_path / "toy"), 0.0)
    both = with_text(first, read_adapter(tmp_path / "toys"), 0.0)
    tokens = both.tokenize("(<toy>s:1.5) <toy> red")["l"][0]
    vectors = [(weight, token) for token, weight in tokens if torch.is_tensor(token)]
    assert [weight for weight, _ in vectors] == [1.5, 1.0]
    assert torch.equal(vectors[1][1], read_adapter(tmp_path / "toy").text.rows("text_encoder")[0])
    assert sum(torch.is_tensor(token) for token, _ in first.tokenize("<toy>s")["l"][0]) == 1
    assert not any(torch.is_tensor(token) for token, _ in clip.tokenize("<toy>")["l"][0])


def test_what_does_not_fit(kind, pipe, clip, tmp_path):
    adapter = read_adapter(write_text_adapter(kind, tmp_path / "toy"))
    with pytest.raises(FeraError, match="toy has parts in the text encoders: connect the CLIP too"):
        with_text(None, adapter, 1.0)
    wide = clip.clone()
    wide.tokenizer = copy.copy(clip.tokenizer)
    wide.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    wide.tokenizer.clip_l.embedding_size = 768
    with pytest.raises(FeraError, match="the token <toy> for a text_encoder 32 wide, which this CLIP has not"):
        with_text(wide, adapter, 1.0)
