"""What a file of a text encoder says of it: which it is, by names of weights, and its settings, by their shapes.

Names are those of transformers, as ComfyUI has them: `clip_l`, `clip_g`, `t5xxl`, `umt5_xxl`, `qwen_2.5_vl_7b`,
`qwen_3_4b`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fera.pipelines.file_shapes import Shapes, count

_CLIP = "text_model."
# Of OpenAI's CLIP, whose activation is another than OpenCLIP's.
CLIP_L_WIDTH = 768
_HEAD = 64


@dataclass(frozen=True)
class TextKind:
    """A text encoder that goes around as one file.

    Args:
        name: what people call it.
        fits: how the names of its classes in transformers begin.
        settings: from shapes to the settings of its configuration; None where shapes do not say enough.
    """

    name: str
    fits: tuple[str, ...]
    settings: Callable[[Shapes], dict[str, Any]] | None


def text_kind_of(shapes: Shapes) -> TextKind | None:
    """The text encoder that a file holds; None of a file of something else."""
    if any(key.startswith("encoder.block.0.layer.0.SelfAttention.") for key in shapes):
        # Each layer of a UMT5 has a bias of its own.
        return UMT5 if f"encoder.block.1.layer.0.{_BIAS}" in shapes else T5
    if f"{_CLIP}embeddings.position_embedding.weight" in _wrapped(shapes):
        return CLIP
    if not any(key.endswith("layers.0.self_attn.q_proj.weight") for key in shapes):
        return None
    if any("visual." in key for key in shapes):
        return QWEN_25_VL if any(key.endswith(f"{_FIRST}.self_attn.q_proj.bias") for key in shapes) else LANGUAGE
    is_qwen3 = f"{_model(shapes)}{_FIRST}.self_attn.q_norm.weight" in shapes and not any(
        "pre_feedforward_layernorm" in key for key in shapes
    )
    return QWEN_3 if is_qwen3 else LANGUAGE


def is_clip_l(shapes: Shapes) -> bool:
    """Whether a file holds the smaller of the two CLIP encoders."""
    return _wrapped(shapes)[f"{_CLIP}embeddings.token_embedding.weight"][1] == CLIP_L_WIDTH


def _clip(shapes: Shapes) -> dict[str, Any]:
    shapes = _wrapped(shapes)
    words, width = shapes[f"{_CLIP}embeddings.token_embedding.weight"]
    projection = shapes.get("text_projection.weight", (width,))
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes[f"{_CLIP}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, f"{_CLIP}encoder.layers."),
        "num_attention_heads": max(width // _HEAD, 1),
        "max_position_embeddings": shapes[f"{_CLIP}embeddings.position_embedding.weight"][0],
        "projection_dim": projection[0],
        "hidden_act": "quick_gelu" if width == CLIP_L_WIDTH else "gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published: the end of a caption is then its largest token, which is right for CLIP's
        "pad_token_id": 1,
    }


def _t5(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    buckets, heads = shapes[f"encoder.block.0.layer.0.{_BIAS}"]
    is_gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    inner = shapes[f"encoder.block.0.layer.1.DenseReluDense.{'wi_0' if is_gated else 'wi'}.weight"][0]
    return {
        "vocab_size": words,
        "d_model": width,
        "d_ff": inner,
        "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        "num_layers": count(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if is_gated else "relu",
        "tie_word_embeddings": False,
    }


def _qwen_3(shapes: Shapes) -> dict[str, Any]:
    return {**_decoder(shapes), "max_position_embeddings": 40960, "tie_word_embeddings": True}


def _qwen_25_vl(shapes: Shapes) -> dict[str, Any]:
    model = next(key for key in shapes if "visual." in key).partition("visual.")[0] + "visual."
    width, _, frames, patch, _ = shapes[f"{model}patch_embed.proj.weight"]
    text = {**_decoder(shapes), "max_position_embeddings": 128000, "tie_word_embeddings": False}
    head = text["head_dim"]
    # As published for heads of 128: of each half of a head, a quarter for time, the rest for height and width.
    parts = [head // 8, head // 2 * 3 // 8, head // 2 * 3 // 8]
    text["rope_parameters"] |= {"type": "mrope", "mrope_section": parts}
    return {
        "text_config": text,
        "vision_config": {
            "depth": count(shapes, f"{model}blocks."),
            "hidden_size": width,
            "intermediate_size": shapes[f"{model}blocks.0.mlp.gate_proj.weight"][0],
            "num_heads": max(width // 80, 1),
            "out_hidden_size": shapes[f"{model}merger.mlp.2.weight"][0],
            "patch_size": patch,
            "temporal_patch_size": frames,
        },
        "tie_word_embeddings": False,
    }


def _decoder(shapes: Shapes) -> dict[str, Any]:
    model = _model(shapes)
    words, width = shapes[f"{model}embed_tokens.weight"]
    norm = shapes.get(f"{model}{_FIRST}.self_attn.q_norm.weight")
    head = norm[0] if norm else 128
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes[f"{model}{_FIRST}.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, f"{model}layers."),
        "num_attention_heads": shapes[f"{model}{_FIRST}.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{model}{_FIRST}.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    }


def _model(shapes: Shapes) -> str:
    """What comes before the layers' names in a file of a language model."""
    key = next(key for key in shapes if key.endswith("embed_tokens.weight"))
    return key.removesuffix("embed_tokens.weight")


def _wrapped(shapes: Shapes) -> Shapes:
    """Under the names of all versions of transformers but the latest, which has no wrapper any more."""
    own = ("embeddings.", "encoder.layers.", "final_layer_norm.")
    return {f"{_CLIP}{key}" if key.startswith(own) else key: shape for key, shape in shapes.items()}


_FIRST = "layers.0"
_BIAS = "SelfAttention.relative_attention_bias.weight"
CLIP = TextKind("CLIP", ("CLIPText",), _clip)
T5 = TextKind("T5", ("T5Encoder",), _t5)
UMT5 = TextKind("UMT5", ("UMT5Encoder",), _t5)
QWEN_25_VL = TextKind("Qwen2.5-VL", ("Qwen2_5_VL",), _qwen_25_vl)
QWEN_3 = TextKind("Qwen3", ("Qwen3Model", "Qwen3ForCausalLM"), _qwen_3)
LANGUAGE = TextKind("a language model", ("Gemma", "Llama", "Mistral", "Qwen", "SmolLM", "GlmModel"), None)
