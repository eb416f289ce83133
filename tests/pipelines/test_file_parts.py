"""Bases in several files, as ComfyUI has them: a denoiser, a VAE, text encoders, the folder of a tokenizer."""

import copy
import io
import shutil
import socket
from pathlib import Path

import original_names
import original_transformers
import original_vaes
import pytest
import sentencepiece
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from models.inputs import awake
from safetensors.torch import save_file
from tiny import WORDS, make_sd3_pipeline, make_t5
from tiny_texts import make_tokenizer
from trained_cases import qwen_image, wan, z_image
from training_cases import log_of, run_config
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from zero_files import file_of_zeros, no_network

import fera.pipelines
from fera.cli.main import main
from fera.errors import FeraError
from fera.pipelines.base import load_base
from fera.pipelines.skeletons import skeletons
from fera.training import TrainConfig, train

CONFIGURATIONS = Path(fera.pipelines.__file__).parent / "configurations" / "black-forest-labs" / "FLUX.1-dev"


def save(weights, path):
    save_file({key: weight.contiguous().clone() for key, weight in weights.items()}, path)
    return path


def wrapped(model):
    """As files of CLIP have it, and transformers had it for years."""
    return {
        key if key.startswith("text_") else f"text_model.{key}": weight for key, weight in model.state_dict().items()
    }


def equal(part, other):
    state, expected = part.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(state[key].float(), weight.float(), rtol=0, atol=0, msg=key)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder as ComfyUI's for T5, with a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("tokenizers") / "t5_tokenizer"
    make_t5()[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files_and_parts(tmp_path_factory):
    """By name, files of a tiny Z-Image and the parts that are in them; no folder of a pipeline."""
    folder = tmp_path_factory.mktemp("z_image")
    torch.manual_seed(5)
    words = make_tokenizer()
    settings = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=256, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32
    )
    encoder = Qwen3Model(Qwen3Config(vocab_size=len(words), rope_theta=1e6, **settings, **heads))
    parts = {"transformer": awake(transformer), "vae": vae.eval(), "text_encoder": encoder.eval(), "tokenizer": words}
    plain = copy.deepcopy(words)
    plain.chat_template = "{{ 'of another model' }}"  # as Qwen2.5's is, which ComfyUI has
    plain.save_pretrained(folder / "qwen25_tokenizer")
    texts = {f"model.{key}": weight for key, weight in encoder.state_dict().items()}
    files = {
        "denoiser": save(original_names.z_image(transformer), folder / "z_image_turbo.safetensors"),
        "ae": save(original_vaes.kl(vae), folder / "ae.safetensors"),
        "texts": save(texts, folder / "qwen_3_4b.safetensors"),
        "tokenizer": folder / "qwen25_tokenizer",
    }
    return files, parts


def base_of(files, without=()):
    return "|".join(str(file) for name, file in files.items() if name not in without)


def test_z_image_in_three_files_without_a_folder(files_and_parts):
    """Sizes are the files', all else is published; it draws as the pipeline does that was made of the same parts."""
    files, parts = files_and_parts
    pipe = load_base(base_of(files))
    assert type(pipe) is ZImagePipeline and pipe.name_or_path == base_of(files)
    for name in ("transformer", "vae", "text_encoder"):
        equal(getattr(pipe, name), parts[name])
    assert (pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor) == (0.3611, 0.1159)
    assert pipe.scheduler.config.shift == 3.0
    expected = ZImagePipeline(**parts, scheduler=pipe.scheduler)
    for each in (pipe, expected):
        each.set_progress_bar_config(disable=True)
    call = {"prompt": "a red rocket", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    drawn = [each(**call, generator=torch.Generator().manual_seed(0)).images for each in (pipe, expected)]
    torch.testing.assert_close(*map(torch.from_numpy, drawn), rtol=1e-4, atol=1e-5)


def test_they_train_draw_and_show_their_layers(files_and_parts, image_folder, tmp_path, capsys):
    """From a list in a configuration; the adapter remembers all of them."""
    files, _ = files_and_parts
    names = [str(file) for file in files.values()]
    config = run_config(base_of(files), image_folder, tmp_path / "run", train={"steps": 2}, data={"resolution": 16})
    assert TrainConfig(**config.model_dump() | {"base": names}).base == config.base
    train(config)
    assert len(log_of(config, "loss")) == 2
    drawing = ["generate", "a red rocket", "--adapter", str(tmp_path / "run"), "--steps", "2"]
    assert main([*drawing, "--output", str(tmp_path / "out"), "--width", "16", "--height", "16"]) == 0
    capsys.readouterr()
    assert main(["models", names[0], "--blocks", "layers.0"]) == 0
    assert "transformer: ZImageTransformer2DModel: 7 of " in capsys.readouterr().out


def test_another_pipeline_of_the_same_files(files_and_parts):
    files, _ = files_and_parts
    assert type(load_base(f"{base_of(files)}#ZImageImg2ImgPipeline")) is ZImageImg2ImgPipeline
    with pytest.raises(FeraError, match="diffusers .* has no pipeline 'ZImageImgPipeline', which is behind #"):
        load_base(f"{base_of(files)}#ZImageImgPipeline")


def test_what_is_missing_is_named(files_and_parts, capsys):
    files, _ = files_and_parts
    assert main(["generate", "a cat", "--base", base_of(files, ("texts", "tokenizer", "ae"))]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told
    assert "the files hold no text_encoder (Qwen3Model: its file, as qwen_3_4b.safetensors), tokenizer (" in told
    assert "Qwen2Tokenizer: a folder with its vocab.json, as ComfyUI's comfy/text_encoders/qwen25_tokenizer), " in told
    assert "vae (AutoencoderKL: its file, as ae.safetensors). Name what is missing behind '|'" in told


def test_mistakes(files_and_parts, tmp_path):
    files, parts = files_and_parts
    base = base_of(files)

    def copied(file):
        return shutil.copy(file, tmp_path / f"{file.stem}-copy.safetensors")

    cases = {
        f"{base}|{files['ae']}": "ae.safetensors is named twice",
        f"{base}|{copied(files['ae'])}": "ae.safetensors and ae-copy.safetensors are both VAEs",
        f"{base}|{tmp_path / 'absent.safetensors'}": r"absent.safetensors is no file \(looked from",
        f"{base}|{copied(files['texts'])}": "is a second Qwen3 for text_encoder",
        f"{base}|{copied(files['denoiser'])}": "2 files hold a denoiser, and the pipeline has 1",
        f"{tmp_path}|{base}": "is no file .*; the denoiser's file comes first, a folder behind it",
        f"{base}|a/b|c/d": "a/b and c/d are neither files nor tokenizers",
        f"{base}|": r"name a file, or a pipeline's folder or Hub id behind '\|'",
        f"{files['ae']}|{files['texts']}": "its weights are of no model known here",
    }
    save({"weight": torch.zeros(2)}, tmp_path / "any.safetensors")
    cases[f"{base}|{tmp_path / 'any.safetensors'}"] = "any.safetensors: its weights are of no part known here"
    (tmp_path / "vae.pt").write_bytes(b"pickle")
    cases[f"{base}|{tmp_path / 'vae.pt'}"] = r"only .safetensors and .gguf are read; pickles"
    short = parts["text_encoder"].state_dict()
    del short["layers.1.mlp.up_proj.weight"]
    part = save(short, tmp_path / "part.safetensors")
    cases[f"{base_of(files, ('texts',))}|{part}"] = "part.safetensors lacks weights of a Qwen3Model"
    t5 = save(make_t5()[0].state_dict(), tmp_path / "t5xxl.safetensors")
    cases[f"{base}|{t5}"] = "t5xxl.safetensors holds T5, and this pipeline has no text encoder of that kind"
    for name, words in cases.items():
        with pytest.raises(FeraError, match=words):
            load_base(name)


def test_a_tokenizer_of_another_kind(files_and_parts, tokenizer):
    files, _ = files_and_parts
    with pytest.raises(FeraError, match=r"holds a T5Tokenizer; tokenizers here: tokenizer \(a Qwen2Tokenizer"):
        load_base(f"{base_of(files, ('tokenizer',))}|{tokenizer}")


def test_parts_in_files_take_the_place_of_a_folders(tmp_path):
    """Z-Image and its VAE in files, its text encoder and tokenizer in a folder that lacks the others."""
    pipe = z_image.make_pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    for part in ("transformer", "vae"):
        for weights in (tmp_path / "folder" / part).glob("*.safetensors"):
            weights.unlink()
    denoiser = save(original_names.z_image(pipe.transformer), tmp_path / "z_image.safetensors")
    vae = save(original_vaes.kl(pipe.vae), tmp_path / "ae.safetensors")
    opened = load_base(f"{denoiser}|{vae}|{tmp_path / 'folder'}")
    for name in ("transformer", "vae", "text_encoder"):
        equal(getattr(opened, name), getattr(pipe, name))


def umt5_file(folder):
    """A text encoder's file as ComfyUI's, with its tokenizer in it and a weight in 8 bits; the encoder; that weight."""
    torch.manual_seed(6)
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 5),
        model_writer=trained,
        vocab_size=27,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4))
    weights = {key: weight.contiguous().clone() for key, weight in encoder.state_dict().items()}
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    scale = weights[name].abs().max() / 400
    weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
    weights[name.replace(".weight", ".scale_weight")] = scale
    weights["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    weights["spiece_model"] = torch.tensor(list(trained.getvalue()), dtype=torch.uint8)
    texts = save(weights, folder / "umt5_xxl.safetensors")
    return texts, encoder.eval(), name, weights[name].float() * scale


def test_wans_two_denoisers_vae_and_text_encoder_with_its_words(tmp_path):
    """The text encoder's file has the tokenizer in it, as ComfyUI's; scales of 8-bit weights are multiplied in."""
    pipe = wan.make_14b()
    torch.manual_seed(6)
    vae = (
        type(pipe.vae)
        .from_config({**pipe.vae.config, "base_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2})
        .eval()
    )
    texts, encoder, name, held_in_few_bits = umt5_file(tmp_path)
    pipe.register_modules(vae=vae, text_encoder=encoder.eval())
    pipe.save_pretrained(tmp_path / "folder")
    for part in ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer"):
        shutil.rmtree(tmp_path / "folder" / part)
    # What shapes do not say of tiny parts: the width of heads; published ones come in one.
    for part in ("transformer", "transformer_2", "vae"):
        getattr(pipe, part).save_config(tmp_path / "folder" / part)
    high = save(original_transformers.wan(pipe.transformer), tmp_path / "wan_high_noise.safetensors")
    low = save(original_transformers.wan(pipe.transformer_2), tmp_path / "wan_low_noise.safetensors")
    files = f"{save(original_vaes.wan(vae), tmp_path / 'wan_2.1_vae.safetensors')}|{texts}|{tmp_path / 'folder'}"
    opened = load_base(f"{high}|{low}|{files}")
    for part in ("transformer", "transformer_2", "vae"):
        equal(getattr(opened, part), getattr(pipe, part))
    assert opened.config.boundary_ratio == 0.875
    held = opened.text_encoder.get_parameter(name)
    torch.testing.assert_close(held, held_in_few_bits)
    assert opened.tokenizer("a red rocket").input_ids[-1] == 1  # the end
    with pytest.raises(FeraError, match=r"name the denoiser of high noise first: .*high_noise.*\|.*low_noise"):
        load_base(f"{low}|{high}|{files}")
    shown = skeletons(f"{high}|{low}|{files}")
    assert {name: part.num_parameters() for name, part in shown.items()} == {
        name: getattr(pipe, name).num_parameters() for name in ("transformer", "transformer_2")
    }


def test_qwen_image_with_its_text_encoder(tmp_path):
    """Under the names that its files have had since before transformers moved them."""
    pipe = qwen_image.make_pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "transformer")
    weights = {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): weight
        for key, weight in pipe.text_encoder.state_dict().items()
    }
    texts = save(weights, tmp_path / "qwen_2.5_vl_7b.safetensors")
    with torch.no_grad():
        for weight in pipe.text_encoder.parameters():  # unlike the folder's
            weight.add_(0.01)
    denoiser = save(original_transformers.qwen_image(pipe.transformer), tmp_path / "qwen.safetensors")
    opened = load_base(f"{denoiser}|{texts}|{tmp_path / 'folder'}")
    equal(opened.transformer, pipe.transformer)
    held, added = opened.text_encoder.state_dict(), pipe.text_encoder.state_dict()
    for key, weight in held.items():
        torch.testing.assert_close(weight + 0.01, added[key], rtol=1e-5, atol=1e-6)


def test_stable_diffusion_3s_third_encoder_and_tokenizer(tmp_path, tokenizer):
    """Beside a folder that lacks both."""
    pipe = make_sd3_pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "folder" / part)
    denoiser = save(original_transformers.stable_diffusion_3(pipe.transformer), tmp_path / "sd3.safetensors")
    t5 = T5EncoderModel(T5Config(**pipe.text_encoder_3.config.to_dict() | {"num_layers": 2}))
    texts = save(t5.state_dict(), tmp_path / "t5xxl.safetensors")
    with pytest.raises(FeraError, match=r"tokenizer_3 is not in .*folder"):
        load_base(f"{denoiser}|{texts}|{tmp_path / 'folder'}")
    opened = load_base(f"{denoiser}|{texts}|{tokenizer}|{tmp_path / 'folder'}")
    equal(opened.text_encoder_3, t5)
    assert opened.tokenizer_3("a red rocket").input_ids == pipe.tokenizer_3("a red rocket").input_ids


@pytest.mark.slow
@pytest.mark.parametrize("is_dev", [True, False])
def test_flux_as_wide_as_it_is(tmp_path, tokenizer, monkeypatch, is_dev):
    """diffusers converts FLUX.1 of its own width alone: one block of each kind, of zeros, and its whole VAE."""
    monkeypatch.setattr(socket.socket, "connect", no_network)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=is_dev)
        fill = FluxTransformer2DModel(num_layers=1, num_single_layers=1, in_channels=384, out_channels=64)
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        settings = {"vocab_size": 200, "d_model": 4096, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        t5 = T5EncoderModel(T5Config(**settings, feed_forward_proj="gated-gelu"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGURATIONS, subfolder="vae"))
    rest = [
        file_of_zeros(tmp_path / f"{name}.safetensors", weights)
        for name, weights in (
            ("ae", original_vaes.kl(vae)),
            ("clip_l", wrapped(clip)),
            ("t5xxl", t5.state_dict()),
        )
    ]
    rest = "|".join(map(str, [*rest, tokenizer]))
    file = file_of_zeros(tmp_path / "flux.safetensors", original_transformers.flux(transformer))
    pipe = load_base(f"{file}|{rest}", dtype=torch.float16, laid_out=False)
    assert type(pipe) is FluxPipeline and pipe.scheduler.config.shift == (3.0 if is_dev else 1.0)
    assert pipe.transformer.num_parameters() == transformer.num_parameters()
    assert pipe.vae.num_parameters() == 83_819_683 and pipe.text_encoder.config.hidden_act == "quick_gelu"
    if is_dev:
        assert type(load_base(f"{file}|{rest}#FluxKontextPipeline", dtype=torch.float16)) is FluxKontextPipeline
    else:
        file = file_of_zeros(tmp_path / "fill.safetensors", original_transformers.flux(fill))
        assert type(load_base(f"{file}|{rest}", dtype=torch.float16)) is FluxFillPipeline


@pytest.mark.slow
def test_qwen_image_without_a_folder(tmp_path, monkeypatch):
    """A small denoiser, a small text encoder whose heads are as wide as they are, and the whole VAE, of zeros."""
    monkeypatch.setattr(socket.socket, "connect", no_network)
    pipe = qwen_image.make_pipeline()
    pipe.tokenizer.save_pretrained(tmp_path / "words")
    config = copy.deepcopy(pipe.text_encoder.config)
    text = config.text_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads = 128, 1, 1
    config.vision_config.out_hidden_size = 128
    encoder = type(pipe.text_encoder)(config)
    weights = {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): weight
        for key, weight in encoder.state_dict().items()
    }
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
    files = [
        save(original_transformers.qwen_image(pipe.transformer), tmp_path / "qwen_image.safetensors"),
        file_of_zeros(tmp_path / "qwen_image_vae.safetensors", original_vaes.wan(vae)),
        save(weights, tmp_path / "qwen_2.5_vl_7b.safetensors"),
        tmp_path / "words",
    ]
    opened = load_base("|".join(map(str, files)))
    assert type(opened) is QwenImagePipeline and opened.scheduler.config.shift_terminal == 0.02
    equal(opened.text_encoder, encoder)
    assert opened.vae.num_parameters() == vae.num_parameters()


@pytest.mark.slow
def test_wan_without_a_folder(tmp_path, monkeypatch):
    """Two small denoisers with heads as wide as they are, or one; the whole VAE, of zeros; a tiny text encoder."""
    monkeypatch.setattr(socket.socket, "connect", no_network)
    settings = {"num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 1, "ffn_dim": 32, "text_dim": 64}
    for channels, pipeline in ((16, WanPipeline), (36, WanImageToVideoPipeline)):
        torch.manual_seed(channels)
        made = [WanTransformer3DModel(**settings, in_channels=channels, out_channels=16) for _ in range(2)]
        high, low = (
            save(original_transformers.wan(each), tmp_path / f"{name}_noise_{channels}.safetensors")
            for name, each in zip(("high", "low"), made, strict=True)
        )
        with torch.device("meta"):
            vae = AutoencoderKLWan()
        rest = f"{file_of_zeros(tmp_path / 'vae.safetensors', original_vaes.wan(vae))}|{umt5_file(tmp_path)[0]}"
        opened = load_base(f"{high}|{low}|{rest}")
        assert type(opened) is pipeline and opened.config.boundary_ratio == (0.875 if channels == 16 else 0.9)
        assert opened.scheduler.config.flow_shift == 3.0 and opened.vae.num_parameters() == vae.num_parameters()
        for name, expected in zip(("transformer", "transformer_2"), made, strict=True):
            equal(getattr(opened, name), expected)
    alone = load_base(f"{tmp_path / 'low_noise_16.safetensors'}|{rest}")
    assert alone.transformer_2 is None and alone.config.boundary_ratio is None  # Wan 2.1
    with pytest.raises(FeraError, match="The configuration of Wan-AI/Wan2.1-I2V-14B-480P-Diffusers was taken for it"):
        load_base(f"{tmp_path / 'low_noise_36.safetensors'}|{rest}")
