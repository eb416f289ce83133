"""Files of an adapter's text parts, in the formats of others, and reading them without trust.

LoRA of all text encoders: `text_encoder_lora.safetensors`, as `pipe.load_lora_weights` reads it; not under the name
that it looks for by itself, for a LoRA without the denoiser's part is not what one would want of a folder. A learned
token: one `learned_embeds.safetensors` an encoder, `learned_embeds_2.safetensors` for the second, as
`pipe.load_textual_inversion` reads it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fera.adapters.tensors import save_tensors
from fera.adapters.text.text_lora import TextLora
from fera.errors import FeraError
from fera.format import TEXT_LORA, TOKEN_FILES
from fera.support.files import replace_file

_METADATA_KEY = "lora_adapter_metadata"
_KEY = re.compile(r"(text_encoder(?:_[2-9])?)\.([\w.]+)\.lora_([AB])\.weight")
_TOKENS = re.compile(TOKEN_FILES)
# Far beyond any use.
_MAX_RANK = 16_384
_MAX_VECTORS = 1_000
_MAX_TOKEN = 100

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Token:
    """A learned token.

    Args:
        name: the word in prompts.
        rows: its vectors by text encoder, shape (V, D) each.
    """

    name: str
    rows: dict[str, Tensor]

    @property
    def num_vectors(self) -> int:
        """V."""
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class TextFiles:
    """Text parts of an adapter on disk, checked, their weights not yet read.

    Args:
        folder: that holds them.
        names: the names of the files.
        loras: by text encoder: rank, alpha, and by the layer's path the (in, out) features.
        token: the learned word; None where there is none.
        vectors: shape (V, D) of its vectors by text encoder.
    """

    folder: Path
    names: list[str]
    loras: dict[str, tuple[int, float, dict[str, tuple[int, int]]]]
    token: str | None
    vectors: dict[str, Shape]

    @property
    def encoders(self) -> list[str]:
        """Text encoders that have a part."""
        return sorted({*self.loras, *self.vectors})

    @property
    def parameters(self) -> int:
        """Number of weights."""
        loras = (rank * sum(map(sum, layers.values())) for rank, _, layers in self.loras.values())
        return sum(loras) + sum(map(math.prod, self.vectors.values()))

    @cached_property
    def _lora_tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / TEXT_LORA) if self.loras else {}

    def lora(self, encoder: str) -> TextLora:
        """The LoRA of a text encoder, on the CPU."""
        rank, alpha, layers = self.loras[encoder]
        tensors = self._lora_tensors
        keys = {path: f"{encoder}.{path}.lora_" for path in layers}
        return TextLora(
            rank, alpha, {path: (tensors[f"{key}A.weight"], tensors[f"{key}B.weight"]) for path, key in keys.items()}
        )

    def rows(self, encoder: str) -> Tensor:
        """Vectors of the token for a text encoder, shape (V, D), on the CPU."""
        return next(iter(load_file(self.folder / token_file(encoder)).values()))


def token_file(encoder: str) -> str:
    """Name of the file with a text encoder's vectors of the token."""
    return f"learned_embeds{encoder.removeprefix('text_encoder')}.safetensors"


def file_names(loras: Mapping[str, TextLora], token: Token | None) -> list[str]:
    """Names of the files that hold text parts."""
    return [TEXT_LORA] * bool(loras) + [token_file(encoder) for encoder in (token.rows if token else {})]


def write_text(folder: Path, loras: Mapping[str, TextLora], token: Token | None) -> None:
    """Write text parts, each file whole.

    Args:
        folder: that exists.
        loras: by text encoder.
        token: the learned token.

    Raises:
        OSError: the folder cannot be written.
    """
    if loras:
        tensors, settings = lora_tensors(loras), lora_settings(loras)
        metadata = {"format": "pt", _METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True)}
        replace_file(folder / TEXT_LORA, lambda path: save_tensors(tensors, path, metadata))
    if token is not None:
        for encoder, rows in token.rows.items():
            _write_rows(folder / token_file(encoder), token.name, rows)


def lora_tensors(loras: Mapping[str, TextLora]) -> dict[str, Tensor]:
    """LoRAs of text encoders by diffusers' names."""
    return {
        f"{encoder}.{path}.lora_{side}.weight": tensor
        for encoder, lora in loras.items()
        for path, pair in lora.layers.items()
        for side, tensor in zip("AB", pair, strict=True)
    }


def lora_settings(loras: Mapping[str, TextLora]) -> dict[str, Any]:
    """Settings of the `peft.LoraConfig` that loads each, behind the encoder's name as diffusers wants them."""
    return {
        f"{encoder}.{key}": value
        for encoder, lora in loras.items()
        for key, value in {
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            # Not the whole paths: transformers has two names for some of them.
            "target_modules": sorted({path.rpartition(".")[2] for path in lora.layers}),
        }.items()
    }


def open_text(folder: Path, names: Sequence[str]) -> TextFiles:
    """Read the headers of text parts and check them.

    Args:
        folder: that holds them.
        names: the names of the files, checked.

    Raises:
        FeraError: a file is missing or damaged, or holds something else.
    """
    loras, tokens, vectors = {}, {}, {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FeraError(f"{path} is missing: the adapter has a part in the text encoders, and it is in this file")
        metadata, shapes = _header(path)
        if name == TEXT_LORA:
            loras = _loras(path, metadata, shapes)
        else:
            encoder = f"text_encoder{_suffix(name)}"
            tokens[encoder], vectors[encoder] = _token(path, shapes)
    if len({(token, vectors[encoder][0]) for encoder, token in tokens.items()}) > 1:
        raise FeraError(f"the learned tokens in {folder} differ from encoder to encoder; the adapter is damaged")
    return TextFiles(folder, list(names), loras, next(iter(tokens.values()), None), vectors)


def _write_rows(path: Path, token: str, rows: Tensor) -> None:
    replace_file(path, lambda file: save_tensors({token: rows.contiguous()}, file, {"format": "pt"}))


def _suffix(name: str) -> str:
    match = _TOKENS.fullmatch(name)
    return (match and match[1]) or ""


def _header(path: Path) -> tuple[dict[str, str], dict[str, Shape]]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            return file.metadata() or {}, shapes
    except (SafetensorError, OSError) as error:
        raise FeraError(f"{path} is not a readable safetensors file ({error}); copy or download it again") from error


def _loras(
    path: Path, metadata: dict[str, str], shapes: Mapping[str, Shape]
) -> dict[str, tuple[int, float, dict[str, tuple[int, int]]]]:
    sides: dict[str, dict[str, dict[str, Shape]]] = {}
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key)
        if match is None or len(shape) != 2 or 0 in shape:
            raise FeraError(f"{path}: {key[:200]} of shape {list(shape)} is no part of a text encoder's LoRA")
        sides.setdefault(match[1], {}).setdefault(match[2], {})[match[3]] = shape
    found = {}
    for encoder, layers in sides.items():
        ranks = {
            shape[side == "B"] for pair in layers.values() for side, shape in pair.items() if pair.keys() == {"A", "B"}
        }
        if len(ranks) != 1 or any(pair.keys() != {"A", "B"} for pair in layers.values()) or max(ranks) > _MAX_RANK:
            raise FeraError(f"{path}: the LoRA of {encoder} is incomplete, or its layers differ in rank")
        features = {name: (pair["A"][1], pair["B"][0]) for name, pair in layers.items()}
        found[encoder] = (ranks.pop(), _alpha(path, metadata, encoder), features)
    return found


def _alpha(path: Path, metadata: dict[str, str], encoder: str) -> float:
    try:
        value = json.loads(metadata[_METADATA_KEY])[f"{encoder}.lora_alpha"]
        if isinstance(value, bool) or not 0 < value < 1e9:
            raise ValueError(f"lora_alpha is {value!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FeraError(f"{path} does not tell the strength of the LoRA of {encoder} ({str(error)[:200]})") from error
    return float(value)


def _token(path: Path, shapes: Mapping[str, Shape]) -> tuple[str, Shape]:
    if len(shapes) != 1:
        raise FeraError(f"{path} holds {len(shapes)} tokens; fera reads files of one")
    ((token, shape),) = shapes.items()
    if not token.isprintable() or any(map(str.isspace, token)) or not 0 < len(token) <= _MAX_TOKEN:
        raise FeraError(f"{path}: {token[:_MAX_TOKEN]!r} is no word")
    if len(shape) != 2 or 0 in shape or shape[0] > _MAX_VECTORS:
        raise FeraError(f"{path}: the token has shape {list(shape)}, not one row for each of its few vectors")
    return token, shape
