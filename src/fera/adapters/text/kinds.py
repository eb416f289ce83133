"""Kinds of text encoders: which of their layers a LoRA is put into, and what files call those."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fera.errors import FeraError

# By name: importing transformers' models takes seconds.
_CLIP = {"CLIPTextModel", "CLIPTextModelWithProjection"}
# Parts of language models that see pictures or hear, and get nothing of a caption.
_SENSES = ("vision", "visual", "audio", "multi_modal", "multimodal")


@dataclass(frozen=True)
class EncoderKind:
    """What is common to text encoders of one make.

    Args:
        name: what people call it.
        targets: its attention's layers, by the end of their names.
        prefix: what files put before the name of each layer where transformers has it no more.
        learns_words: whether its vocabulary can grow.
    """

    name: str
    targets: tuple[str, ...]
    prefix: str = ""
    learns_words: bool = True


CLIP = EncoderKind("CLIP", ("q_proj", "k_proj", "v_proj", "out_proj"), "text_model.")
# T5, UMT5, ByT5.
T5 = EncoderKind("T5", ("q", "k", "v", "o"))
# Qwen, Llama, Mistral, Gemma, T5Gemma, SmolLM, GLM-4.
LANGUAGE_MODEL = EncoderKind("language model", ("q_proj", "k_proj", "v_proj", "o_proj"))
BERT = EncoderKind("BERT", ("query", "key", "value", "attention.output.dense"))
CHATGLM = EncoderKind("ChatGLM", ("query_key_value", "self_attention.dense"), learns_words=False)
_BY_LAYERS = (T5, LANGUAGE_MODEL, BERT, CHATGLM)


def kind_of(encoder: Any) -> EncoderKind | None:
    """The kind of a text encoder: CLIP by its class, others by the layers they have; None where it is of no known one.

    Args:
        encoder: a text encoder of a pipeline.
    """
    if any(cls.__name__ in _CLIP for cls in type(encoder).__mro__):
        return CLIP
    return next((kind for kind in _BY_LAYERS if all(_paths(encoder, [target]) for target in kind.targets)), None)


def target_paths(encoder: Any, targets: Sequence[str] | None) -> list[str]:
    """Paths of the layers of a text encoder that a LoRA is put into.

    Args:
        encoder: the text encoder, of a known kind.
        targets: layers by the end of their names; None: the attention of its kind.

    Raises:
        FeraError: it has no such layers.
    """
    kind = kind_of(encoder)
    assert kind is not None
    paths = _paths(encoder, kind.targets if targets is None else targets)
    if not paths:
        raise FeraError(
            f"cannot put a LoRA into a {type(encoder).__name__}: it has no layers whose names end in "
            f"{', '.join(targets or ())}; those of its attention are {', '.join(kind.targets)}"
        )
    return paths


def _paths(encoder: Any, targets: Sequence[str]) -> list[str]:
    ends = tuple(f".{target}" for target in targets)
    return [
        path
        for path, module in encoder.named_modules()
        if f".{path}".endswith(ends)
        and hasattr(module, "in_features")
        and not any(part.startswith(_SENSES) for part in path.split("."))
    ]
