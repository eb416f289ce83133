"""Text parts of an adapter outside of fera: plain LoRA files, tokens, and what the commands say and draw."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from text_cases import PROMPTS, TOKEN, draw, make_pipeline, write_text_adapter

import fera
from fera import FeraError
from fera.adapters.inspection import describe
from fera.cli.main import main
from fera.export.static import static_lora
from fera.export.writing import export_lora


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    kinds = ("sd", "sdxl", "sd3", "flux")
    return {kind: write_text_adapter(kind, tmp_path_factory.mktemp("text") / kind) for kind in kinds}


def encoded(kind, pipe, prompt):
    if kind == "sd":
        return pipe.encode_prompt(prompt, "cpu", 1, False)[:1]
    if kind == "sd3":
        return pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)[::2]
    if kind == "flux":
        return pipe.encode_prompt(prompt, None)[:2]
    return pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[::2]


@pytest.mark.parametrize(
    ("kind", "format"),
    [("sd", "diffusers"), ("sdxl", "diffusers"), ("sd3", "diffusers"), ("flux", "diffusers"), ("sd", "kohya")],
)
def test_diffusers_reads_the_text_encoders_of_an_export(kind, format, folders, tmp_path):
    pipe = make_pipeline(kind)
    plain = copy.deepcopy(pipe)
    base = encoded(kind, pipe, "a red rocket")
    fera.load_adapter(pipe, folders[kind])
    export_lora(folders[kind], tmp_path, "uniform", format=format)
    name = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "lora.safetensors"}[format]
    plain.load_lora_weights(tmp_path, weight_name=name)
    for folder in tmp_path.glob("text_encoder*"):  # what diffusers reads from no file, by transformers
        getattr(plain, folder.name).load_adapter(str(folder))
    found, expected = encoded(kind, plain, "a red rocket"), encoded(kind, pipe, "a red rocket")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(found[0], base[0]) or not torch.equal(found[1], base[1])


def test_an_export_draws_what_the_merged_adapter_draws(folders, tmp_path):
    """The experts, the text encoder's LoRA and the token together."""
    merged, plain = make_pipeline("sd"), make_pipeline("sd")
    fera.load_adapter(merged, folders["sd"])
    fera.merge(merged, "uniform")
    exported = export_lora(folders["sd"], tmp_path, "uniform")
    assert [path.name for path in exported.files] == ["pytorch_lora_weights.safetensors", "learned_embeds.safetensors"]
    plain.load_lora_weights(tmp_path)
    plain.load_textual_inversion(tmp_path)
    torch.testing.assert_close(draw("sd", plain), draw("sd", merged), rtol=1e-3, atol=1e-4)


def test_kohyas_names(folders, tmp_path):
    export_lora(folders["flux"], tmp_path / "flux", "uniform", format="kohya")
    keys = load_file(tmp_path / "flux" / "lora.safetensors").keys()
    assert "lora_te1_text_model_encoder_layers_0_self_attn_out_proj.lora_down.weight" in keys
    assert "lora_te3_encoder_block_0_layer_0_SelfAttention_o.lora_down.weight" in keys
    export_lora(folders["sd"], tmp_path / "sd", "uniform", format="kohya")
    tensors = load_file(tmp_path / "sd" / "lora.safetensors")
    layer = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
    assert {key.rpartition(f"{layer}.")[2] for key in tensors if key.startswith(layer)} == {
        "lora_down.weight",
        "lora_up.weight",
        "alpha",
    }
    own = load_file(folders["sd"] / "text_encoder_lora.safetensors")
    path = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_"
    up, down = tensors[f"{layer}.lora_up.weight"], tensors[f"{layer}.lora_down.weight"]
    change = up @ down * (tensors[f"{layer}.alpha"] / len(down))
    torch.testing.assert_close(change, 2 * own[f"{path}B.weight"] @ own[f"{path}A.weight"])


def test_tokens_of_two_encoders(folders, tmp_path):
    exported = export_lora(folders["sdxl"], tmp_path, "uniform")
    assert [path.name for path in exported.files[1:]] == ["learned_embeds.safetensors", "learned_embeds_2.safetensors"]
    from fera.adapters.file import open_adapter
    from fera.export.tokens import token_files

    file = open_adapter(folders["sdxl"])
    (tensors,) = token_files(file.text, "kohya", static_lora(file, torch.ones(3) / 3)).values()
    assert {name: tuple(rows.shape) for name, rows in tensors.items()} == {"clip_l": (1, 32), "clip_g": (1, 32)}
    assert torch.equal(tensors["clip_g"], load_file(tmp_path / "learned_embeds_2.safetensors")[TOKEN])


def test_nothing_is_replaced_unasked(folders, tmp_path):
    (tmp_path / "learned_embeds.safetensors").write_text("mine")
    with pytest.raises(FeraError, match="learned_embeds.safetensors exists already"):
        export_lora(folders["sd"], tmp_path, "uniform")
    assert [path.name for path in tmp_path.iterdir()] == ["learned_embeds.safetensors"]


def test_a_schedule_of_loras_has_the_text_encoders_in_each(folders, tmp_path):
    from export_cases import TRACE

    exported = export_lora(folders["sd"], tmp_path, TRACE, schedule=2)
    assert [path.name for path in exported.files[-2:]] == ["schedule.json", "learned_embeds.safetensors"]
    for path in exported.files[:2]:
        with safe_open(path, "pt") as file:
            assert any(key.startswith("text_encoder.") for key in file.keys())


def test_inspect(folders, capsys):
    assert "text" not in describe_plain(folders)
    assert main(["inspect", str(folders["sdxl"]), "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text["token"] == TOKEN and text["num_vectors"] == 1
    assert text["text_encoder_2"] == "LoRA of rank 2, lora_alpha 4, in 8 layers (k_proj, out_proj, q_proj, v_proj)"
    assert text["parameters"] == 2 * (8 * 2 * 64 + 32)


def describe_plain(folders):
    from adapter_cases import write_adapter

    return describe(write_adapter("sd", folders["sd"].parent / "plain"))


def test_generate_draws_with_the_token(folders, tiny_sd_dir, tmp_path):
    arguments = [
        "--base",
        str(tiny_sd_dir),
        "--steps",
        "2",
        "--guidance-scale",
        "1",
        "--compare-base",
        "--device",
        "cpu",
    ]
    adapter = ["--adapter", str(folders["sd"])]
    assert main(["generate", *PROMPTS, *arguments, *adapter, "--output", str(tmp_path)]) == 0
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("0*.png")}
    assert len(pictures) == 4 and len(set(pictures.values())) == 4
