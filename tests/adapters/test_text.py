"""LoRA and learned tokens in text encoders: in the pipeline, on disk, and as other tools read them."""

import copy
import json

import pytest
import torch
from adapter_cases import bits, same
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from text_cases import KINDS, PROMPTS, TOKEN, add_text_adapter, draw, make_pipeline, write_text_adapter

import fera
from fera import FeraError
from fera.adapters.file import open_adapter
from fera.adapters.text.encoders import text_encoders
from fera.adapters.text.kinds import CLIP, kind_of
from fera.adapters.text.tokens import learned_tokens
from fera.format import TEXT_LORA as LORA
from fera.format import WEIGHTS


@pytest.fixture(scope="module")
def originals():
    """One pipeline of each kind, never touched."""
    return {kind: make_pipeline(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def pipe(kind, originals):
    return copy.deepcopy(originals[kind])


@pytest.fixture
def sd(originals):
    return copy.deepcopy(originals["sd"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of an adapter with text parts, of each kind."""
    return {kind: write_text_adapter(kind, tmp_path_factory.mktemp("text") / kind) for kind in KINDS}


def test_saved_and_loaded_by_one_call(kind, pipe, folders):
    trained = draw(kind, add_text_adapter(copy.deepcopy(pipe)))
    base = draw(kind, pipe)
    fera.load_adapter(pipe, folders[kind])
    assert torch.equal(draw(kind, pipe), trained)
    assert not torch.equal(trained[0], base[0])


def test_unloading_leaves_the_pipeline_as_it_was(kind, pipe, folders):
    encoders = text_encoders(pipe)
    before, tokenizer = {name: bits(encoder) for name, encoder in encoders.items()}, pipe.tokenizer
    drawn = draw(kind, pipe)
    fera.load_adapter(pipe, folders[kind])
    assert pipe.tokenizer.tokenize(TOKEN) == [TOKEN] and tokenizer.tokenize(TOKEN) != [TOKEN]
    fera.unload(pipe)
    assert pipe.tokenizer is tokenizer
    assert all(same(before[name], bits(encoder)) for name, encoder in encoders.items())
    assert torch.equal(draw(kind, pipe), drawn)
    fera.load_adapter(pipe, folders[kind])


def test_text_parts_act_after_diffusers_has_switched_them_off(sd, folders):
    fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    full = sd.encode_prompt("a red rocket", "cpu", 1, False)[0]
    sd.disable_lora()
    assert not torch.equal(sd.encode_prompt("a red rocket", "cpu", 1, False)[0], full)
    fera.set_adapters(sd, "toy")
    assert torch.equal(sd.encode_prompt("a red rocket", "cpu", 1, False)[0], full)


def test_weights_scale_lora_and_leave_tokens(sd, folders):
    plain = "a red rocket"
    base = sd.encode_prompt(plain, "cpu", 1, False)[0]
    fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    full, word = sd.encode_prompt(plain, "cpu", 1, False)[0], sd.encode_prompt(TOKEN, "cpu", 1, False)[0]
    fera.set_adapters(sd, "toy", 0.5)
    assert not torch.equal(sd.encode_prompt(plain, "cpu", 1, False)[0], full)
    fera.set_adapters(sd, [])
    assert torch.equal(sd.encode_prompt(plain, "cpu", 1, False)[0], base), "without it, words are the base's again"
    assert sd.tokenizer.tokenize(TOKEN) == [TOKEN], "a token is a word as long as it is loaded"
    fera.set_adapters(sd, "toy")
    assert torch.equal(sd.encode_prompt(plain, "cpu", 1, False)[0], full)
    assert torch.equal(sd.encode_prompt(TOKEN, "cpu", 1, False)[0], word)


def test_two_adapters_with_tokens(sd, folders, tmp_path):
    other = write_text_adapter("sd", tmp_path / "cat", token="<cat>", vectors=3)
    fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    toy = draw("sd", sd)
    fera.load_adapter(sd, other, adapter_name="cat")
    prompts = ["a <cat> rocket", "a red tree"]
    cat = draw("sd", sd, prompts)
    fera.set_adapters(sd, "toy")
    assert torch.equal(draw("sd", sd), toy)
    fera.unload(sd, "toy")
    fera.set_adapters(sd, "cat")
    assert torch.equal(draw("sd", sd, prompts), cat), "its rows have moved, its word has not"
    assert sd.maybe_convert_prompt("a <cat>", sd.tokenizer) == "a <cat> <cat>_1 <cat>_2"


def test_an_adapter_without_text_parts_puts_those_of_others_to_sleep(sd, folders, tmp_path):
    from adapter_cases import write_adapter

    ink = write_adapter("sd", tmp_path / "ink", seed=1)
    assert sorted(path.name for path in ink.iterdir()) == ["adapter_config.json", WEIGHTS]
    fera.load_adapter(sd, ink, adapter_name="ink")
    alone = draw("sd", sd, PROMPTS[:1])
    fera.unload(sd)
    fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    fera.load_adapter(sd, ink, adapter_name="ink")
    assert torch.equal(draw("sd", sd, PROMPTS[:1]), alone)


def test_a_plain_lora_of_others_stays_as_it_is(sd, folders):
    sd.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "words")
    words = sd.encode_prompt("a red rocket", "cpu", 1, False)[0]
    fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    both = sd.encode_prompt("a red rocket", "cpu", 1, False)[0]
    fera.set_adapters(sd, [])
    assert torch.equal(sd.encode_prompt("a red rocket", "cpu", 1, False)[0], words)
    fera.set_adapters(sd, "toy")
    assert torch.equal(sd.encode_prompt("a red rocket", "cpu", 1, False)[0], both)
    fera.unload(sd)
    assert torch.equal(sd.encode_prompt("a red rocket", "cpu", 1, False)[0], words)


def test_diffusers_reads_the_files(kind, pipe, folders):
    """LoRA of CLIP by `load_lora_weights`, tokens by `load_textual_inversion`; the encoders then agree with fera's."""
    other = copy.deepcopy(pipe)
    fera.load_adapter(pipe, folders[kind])
    other.load_lora_weights(folders[kind], weight_name=LORA)
    prompt = f"a {TOKEN} rocket" if hasattr(other, "load_textual_inversion") else "a red rocket"  # SD3's has none
    for name in text_encoders(other) if TOKEN in prompt else ():
        suffix = name.removeprefix("text_encoder")
        tokenizer = copy.deepcopy(getattr(other, f"tokenizer{suffix}"))  # the tiny SDXL has one for both
        setattr(other, f"tokenizer{suffix}", tokenizer)
        file = f"learned_embeds{suffix}.safetensors"
        encoder = getattr(other, name)
        other.load_textual_inversion(folders[kind], weight_name=file, tokenizer=tokenizer, text_encoder=encoder)
    for name, encoder in text_encoders(pipe).items():
        if kind_of(encoder) is not CLIP:
            continue
        ids = getattr(pipe, name.replace("text_encoder", "tokenizer"))(prompt, return_tensors="pt").input_ids
        torch.testing.assert_close(getattr(other, name)(ids)[0], encoder(ids)[0])


def test_pooled_at_the_end_and_not_at_the_token(originals):
    """Old configurations make transformers pool at the highest id, which a learned token has."""
    pipe = copy.deepcopy(originals["sdxl"])
    end = pipe.tokenizer_2.eos_token_id
    for module in pipe.text_encoder_2.modules():
        if "eos_token_id" in vars(module):
            module.eos_token_id = 2
    add_text_adapter(pipe)
    ids = torch.tensor([[0, 5, len(pipe.tokenizer_2) - 1, end, end]])
    inner = pipe.text_encoder_2.text_model
    output = inner(ids)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 3])
    fera.unload(pipe)
    assert inner.eos_token_id == 2


def test_hotswap(sd, folders, tmp_path):
    fera.load_adapter(sd, folders["sd"])
    drawn = draw("sd", sd)
    for layer in sd.text_encoder.modules():
        if hasattr(layer, "lora_B"):
            layer.lora_B["default"].weight.data.mul_(-1)
    learned_tokens(sd.text_encoder).rows["default"].data.mul_(2)
    fera.save_adapter(sd, tmp_path / "other")
    other = draw("sd", sd)
    fera.load_adapter(sd, folders["sd"], hotswap=True)
    assert torch.equal(draw("sd", sd), drawn)
    fera.load_adapter(sd, tmp_path / "other", hotswap=True)
    assert torch.equal(draw("sd", sd), other) and not torch.equal(drawn, other)
    without = write_text_adapter("sd", tmp_path / "without", token=None)
    with pytest.raises(FeraError, match="parts in the text encoders differ"):
        fera.load_adapter(sd, without, hotswap=True)
    assert torch.equal(draw("sd", sd), other)


def test_merged_text_parts_stay(sd, folders, tmp_path):
    fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    fera.load_adapter(sd, write_text_adapter("sd", tmp_path / "cat", token="<cat>"), adapter_name="cat")
    fera.set_adapters(sd, "toy", 0.5)
    words = sd.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    cat = learned_tokens(sd.text_encoder).rows["cat"].clone()
    merged = fera.merge(sd, "uniform", adapter_name="toy")
    assert any(layer.startswith("text_encoder.") for layer in merged.layers)
    torch.testing.assert_close(sd.encode_prompt(PROMPTS, "cpu", 1, False)[0], words)
    embedding = sd.text_encoder.get_input_embeddings()
    ids = sd.tokenizer("<cat>", return_tensors="pt").input_ids
    assert torch.equal(embedding(ids)[0, 1], cat[0])
    fera.unload(sd)
    sd.save_pretrained(tmp_path / "merged")
    again = type(sd).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again.encode_prompt(PROMPTS, "cpu", 1, False)[0], words)


def test_diffusers_adds_no_token_over_a_learned_one(sd, folders):
    """An error, and not rows that silently belong to other words."""
    fera.load_adapter(sd, folders["sd"])
    drawn = draw("sd", sd)
    with pytest.raises(TypeError, match="not an instance of"):
        sd.load_textual_inversion({"<cat>": torch.ones(1, 32)})
    assert torch.equal(draw("sd", sd), drawn)
    fera.unload(sd)
    sd.load_textual_inversion({"<cat>": torch.ones(1, 32)})
    fera.load_adapter(sd, folders["sd"])
    ids = sd.tokenizer("<cat>", return_tensors="pt").input_ids
    assert torch.equal(sd.text_encoder.get_input_embeddings()(ids)[0, 1], torch.ones(32))


def test_half_precision(sd, folders):
    sd.to(torch.bfloat16)
    fera.load_adapter(sd, folders["sd"])
    assert sd.encode_prompt(PROMPTS, "cpu", 1, False)[0].dtype == torch.bfloat16


def test_a_bare_denoiser_gets_its_part(sd, folders):
    fera.load_adapter(sd.unet, folders["sd"])
    assert not hasattr(sd.text_encoder, "peft_config") and TOKEN not in sd.tokenizer.get_vocab()


# Refusals


def change(folder, name, tensors=None, metadata=None):
    with safe_open(folder / name, "pt") as file:
        old = file.metadata()
    save_file(load_file(folder / name) if tensors is None else tensors, folder / name, metadata or old)


@pytest.fixture
def copied(folders, tmp_path):
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in folders["sd"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / LORA).unlink(), "text_encoder_lora.safetensors is missing"),
        (lambda f: (f / LORA).write_bytes(b"x" * 50), "not a readable safetensors"),
        (lambda f: change(f, LORA, {"unet.x.lora_A.weight": torch.ones(1, 1)}), "no part of a text encoder's LoRA"),
        (lambda f: change(f, LORA, {f"{LAYER}.lora_A.weight": torch.ones(2, 32)}), "incomplete"),
        (
            lambda f: change(
                f, LORA, {f"{LAYER}.lora_A.weight": torch.ones(2, 8), f"{LAYER}.lora_B.weight": torch.ones(32, 2)}
            ),
            r"has \(8, 32\) features, text_encoder has \(32, 32\)",
        ),
        (
            lambda f: change(
                f,
                LORA,
                {
                    "text_encoder.x.y.lora_A.weight": torch.ones(2, 8),
                    "text_encoder.x.y.lora_B.weight": torch.ones(8, 2),
                },
            ),
            "text_encoder has \\(None, None\\)",
        ),
        (lambda f: change(f, LORA, metadata={"lora_adapter_metadata": "{}"}), "does not tell the strength"),
        (lambda f: change(f, "learned_embeds.safetensors", {TOKEN: torch.ones(1, 8)}), "is 8 wide, text_encoder is 32"),
        (lambda f: change(f, "learned_embeds.safetensors", {"a b": torch.ones(1, 32)}), "is no word"),
        (lambda f: change(f, "learned_embeds.safetensors", {"<Toy>": torch.ones(1, 32)}), "use lower case"),
        (lambda f: change(f, "learned_embeds.safetensors", {"e": torch.ones(1, 32)}), "has a token 'e' already"),
        (lambda f: change(f, "learned_embeds.safetensors", {TOKEN: torch.ones(2000, 32)}), "has shape"),
    ],
)
def test_damaged_files_are_refused(sd, copied, damage, message):
    damage(copied)
    before = bits(sd.text_encoder)
    with pytest.raises(FeraError, match=message):
        fera.load_adapter(sd, copied)
    assert same(before, bits(sd.text_encoder)) and fera.pipelines.adapters.adapters(sd) == []


def test_names_of_files_lead_nowhere_else(copied):
    with safe_open(copied / WEIGHTS, "pt") as file:
        about = json.loads(file.metadata()["fera"])
    change(copied, WEIGHTS, metadata={"fera": json.dumps(about | {"text": ["../secret.safetensors"]})})
    with pytest.raises(FeraError, match="names text files that fera does not write"):
        open_adapter(copied)


def test_a_pipeline_without_the_encoder(sd, folders):
    sd.text_encoder = None
    with pytest.raises(FeraError, match="has a part in text_encoder, but this pipeline has no such"):
        fera.load_adapter(sd, folders["sd"])


def test_a_name_that_the_text_encoder_has(sd, folders):
    sd.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "toy")
    with pytest.raises(FeraError, match="text_encoder already has an adapter 'toy'"):
        fera.load_adapter(sd, folders["sd"], adapter_name="toy")
    assert "toy" in sd.text_encoder.peft_config
