"""What a file of a denoiser says of it: which model it is, by names of weights, and its settings, by their shapes.

Names are those of original code, as ComfyUI has them, with or without its prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import isqrt, prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fera.errors import FeraError

Shapes = dict[str, tuple[int, ...]]
PREFIX = "model.diffusion_model."
GGUF = ".gguf"


@dataclass(frozen=True)
class FileKind:
    """A model whose denoiser goes around as one file.

    Args:
        name: what people call it.
        class_name: of the denoiser in diffusers.
        published: from shapes, and how many denoisers there are, to the Hub id of a pipeline that has the other parts.
        marks: names of weights that all such files have.
        unlike: names of which none begins a weight, for other models have those and the marks.
        settings: from shapes, and settings known before (head width), to what shapes say.
        pipeline: from shapes to the class of their pipeline, where it is another than the published one's.
    """

    name: str
    class_name: str
    published: Callable[[Shapes, int], str]
    marks: tuple[str, ...]
    settings: Callable[[Shapes, dict[str, Any]], dict[str, Any]]
    unlike: tuple[str, ...] = ()
    pipeline: Callable[[Shapes], str | None] = lambda _: None


def shapes_of(file: Path) -> Shapes:
    """Names and shapes of the weights of a safetensors or GGUF file, without ComfyUI's prefix; no weight is read.

    Raises:
        FeraError: it cannot be read, or is a GGUF file and the package for those is not installed.
    """
    if file.suffix == GGUF:
        return _gguf_shapes(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {key.removeprefix(PREFIX): tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise FeraError(f"it cannot be read: {error}") from error


def _gguf_shapes(file: Path) -> Shapes:
    if find_spec("gguf") is None:
        raise FeraError("GGUF files need the package gguf: pip install 'fera[quantized]'")
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise FeraError(f"it cannot be read: {error}") from error
    # Of the values, whatever they take as quantized; the last axis comes first there.
    return {tensor.name.removeprefix(PREFIX): tuple(int(size) for size in tensor.shape[::-1]) for tensor in tensors}


def kind_of(shapes: Shapes) -> FileKind | None:
    """The model that a file holds the denoiser of; None for one that is not known here."""
    for kind in KINDS:
        has_marks = all(mark in shapes for mark in kind.marks)
        if has_marks and not any(key.startswith(kind.unlike) for key in shapes if kind.unlike):
            return kind
    return None


def _flux(shapes: Shapes, _: dict[str, Any]) -> dict[str, Any]:
    width, head = shapes["img_in.weight"][0], shapes["double_blocks.0.img_attn.norm.key_norm.scale"][0]
    return {
        "in_channels": shapes["img_in.weight"][1],
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count(shapes, "double_blocks."),
        "num_single_layers": count(shapes, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": _has_guidance(shapes),
    }


def _sd3(shapes: Shapes, known: dict[str, Any]) -> dict[str, Any]:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    layers = count(shapes, "joint_blocks.")
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = norm[0] if norm else known.get("attention_head_dim", 64)
    double = [number for number in range(layers) if f"joint_blocks.{number}.x_block.attn2.qkv.weight" in shapes]
    return {
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "patch_size": patch,
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": isqrt(shapes["pos_embed"][1]),
        "qk_norm": "rms_norm" if norm else None,
        "dual_attention_layers": double,
    }


def _wan(shapes: Shapes, known: dict[str, Any]) -> dict[str, Any]:
    width, channels, *patch = shapes["patch_embedding.weight"]
    head = known.get("attention_head_dim", 128)
    seen, keys = shapes.get("img_emb.proj.0.weight"), shapes.get("blocks.0.cross_attn.k_img.weight")
    return {
        "in_channels": channels,
        "out_channels": shapes["head.head.weight"][0] // prod(patch),
        "patch_size": patch,
        "num_layers": count(shapes, "blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
        "image_dim": seen[0] if seen else None,
        "added_kv_proj_dim": keys[1] if keys else None,
    }


def _qwen_image(shapes: Shapes, known: dict[str, Any]) -> dict[str, Any]:
    (width, channels), head = shapes["img_in.weight"], shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // known.get("patch_size", 2) ** 2,
        "num_layers": count(shapes, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_norm.weight"][0],
    }


def _z_image(shapes: Shapes, _: dict[str, Any]) -> dict[str, Any]:
    width, head = shapes["x_embedder.weight"][0], shapes["layers.0.attention.q_norm.weight"][0]
    return {
        "in_channels": shapes["x_embedder.weight"][1] // 4,  # patches of 2 by 2
        "dim": width,
        "n_layers": count(shapes, "layers."),
        "n_refiner_layers": count(shapes, "noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": (shapes["layers.0.attention.qkv.weight"][0] - width) // 2 // head,
        "cap_feat_dim": shapes["cap_embedder.0.weight"][0],
    }


def _has_guidance(shapes: Shapes) -> bool:
    return "guidance_in.in_layer.weight" in shapes


def _wan_release(shapes: Shapes, denoisers: int) -> str:
    """Of the 2.2 with 14 billion parameters there are two denoisers, of others one."""
    _, channels, *_ = shapes["patch_embedding.weight"]
    if channels == _WAN_5B:
        return "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    if channels != _WAN_IMAGE:
        return f"Wan-AI/{'Wan2.2-T2V-A14B' if denoisers > 1 else 'Wan2.1-T2V-14B'}-Diffusers"
    return f"Wan-AI/{'Wan2.2-I2V-A14B' if denoisers > 1 else 'Wan2.1-I2V-14B-480P'}-Diffusers"


def count(shapes: Shapes, beginning: str) -> int:
    """How many layers there are whose numbers follow a beginning of names."""
    return 1 + max(int(key.split(".")[beginning.count(".")]) for key in shapes if key.startswith(beginning))


# Channels that go in, with those of what is given, to the pipeline that gives it.
_FLUX_PIPELINES = {384: "FluxFillPipeline", 128: "FluxControlPipeline"}
_WAN_IMAGE, _WAN_5B = 36, 48

KINDS = (
    FileKind(
        "FLUX.1",
        "FluxTransformer2DModel",
        lambda shapes, _: f"black-forest-labs/FLUX.1-{'dev' if _has_guidance(shapes) else 'schnell'}",
        (
            "img_in.weight",
            "txt_in.weight",
            "vector_in.in_layer.weight",
            "double_blocks.0.img_attn.norm.key_norm.scale",
            "single_blocks.0.linear1.weight",
        ),
        _flux,
        pipeline=lambda shapes: _FLUX_PIPELINES.get(shapes["img_in.weight"][1]),
    ),
    FileKind(
        "Stable Diffusion 3",
        "SD3Transformer2DModel",
        lambda *_: "stabilityai/stable-diffusion-3.5-large",
        ("joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight", "pos_embed"),
        _sd3,
    ),
    FileKind(
        "Wan",
        "WanTransformer3DModel",
        _wan_release,
        ("head.modulation", "patch_embedding.weight", "blocks.0.cross_attn.k.weight"),
        _wan,
        unlike=("vace_", "motion_encoder.", "face_adapter.", "control_adapter."),
    ),
    FileKind(
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        lambda *_: "Qwen/Qwen-Image",
        ("img_in.weight", "txt_norm.weight", "transformer_blocks.0.attn.norm_added_q.weight"),
        _qwen_image,
    ),
    FileKind(
        "Z-Image",
        "ZImageTransformer2DModel",
        lambda *_: "Tongyi-MAI/Z-Image-Turbo",
        (
            "x_embedder.weight",
            "cap_embedder.0.weight",
            "layers.0.attention.qkv.weight",
            "noise_refiner.0.attention.q_norm.weight",
        ),
        _z_image,
        unlike=("control_",),
    ),
)
