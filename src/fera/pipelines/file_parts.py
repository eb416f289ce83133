"""VAEs, text encoders and tokenizers in files of their own, as they lie beside a denoiser's: which part each is."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fera.errors import FeraError
from fera.pipelines.clip_words import clip_tokenizer
from fera.pipelines.file_shapes import Shapes, kind_of, shapes_of
from fera.pipelines.scaled_weights import check_scales, unscaled
from fera.pipelines.text_kinds import CLIP, TextKind, is_clip_l, text_kind_of
from fera.pipelines.vae_shapes import vae_settings

# A sentence piece model, which ComfyUI puts into files of text encoders whose tokenizer it does not bring.
_PIECES = "spiece_model"
# A file that only a folder of a tokenizer has, by kind.
_WORDS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
# What people name for a part, by how its class begins.
_HINTS = {
    "CLIPText": "its file, as clip_l.safetensors or clip_g.safetensors",
    "T5Encoder": "its file, as t5xxl_fp16.safetensors",
    "UMT5Encoder": "its file, as umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "Qwen2_5_VL": "its file, as qwen_2.5_vl_7b.safetensors",
    "Qwen3": "its file, as qwen_3_4b.safetensors",
    "AutoencoderKLWan": "its file, as wan_2.1_vae.safetensors",
    "AutoencoderKLQwenImage": "its file, as qwen_image_vae.safetensors",
    "AutoencoderKL": "its file, as ae.safetensors",
    "T5Tokenizer": "a folder with its tokenizer.json, as ComfyUI's comfy/text_encoders/t5_tokenizer",
    "Qwen2Tokenizer": "a folder with its vocab.json, as ComfyUI's comfy/text_encoders/qwen25_tokenizer",
}

Dtypes = torch.dtype | dict[str, torch.dtype]


@dataclass(frozen=True)
class Pieces:
    """Files beside a denoiser's or a checkpoint's, by what they are.

    Args:
        denoisers: further denoisers.
        vaes: autoencoders; no more than one.
        texts: text encoders and what they are.
        tokenizers: folders of tokenizers.
    """

    denoisers: Sequence[Path] = ()
    vaes: Sequence[Path] = ()
    texts: Mapping[Path, TextKind] = field(default_factory=dict)
    tokenizers: Sequence[Path] = ()


def pieces_of(files: Iterable[Path], tokenizers: Sequence[Path]) -> Pieces:
    """What files hold, told by names and shapes of their weights.

    Raises:
        FeraError: one cannot be read, or holds nothing that is known here, or two are autoencoders.
    """
    denoisers: list[Path] = []
    vaes: list[Path] = []
    texts: dict[Path, TextKind] = {}
    for file in files:
        shapes = shapes_of(file)
        if (text := text_kind_of(shapes)) is not None:
            texts[file] = text
        elif kind_of(shapes) is not None:
            denoisers.append(file)
        elif any(key.startswith("decoder.") for key in _bare(shapes)):
            vaes.append(file)
        else:
            raise FeraError(
                f"{file.name}: its weights are of no part known here; files of a VAE, of CLIP, T5 or a language model, "
                "and of a second denoiser may stand beside the first file"
            )
        if file.suffix != ".safetensors" and file not in denoisers:
            raise FeraError(f"{file.name}: of GGUF files, denoisers alone are read; take this part as safetensors")
    if len(vaes) > 1:
        raise FeraError(f"{vaes[0].name} and {vaes[1].name} are both VAEs: name one")
    return Pieces(denoisers, vaes, texts, tokenizers)


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer, and no pipeline."""
    return not (folder / "model_index.json").is_file() and any((folder / name).is_file() for name in _WORDS)


@dataclass(frozen=True)
class Placed:
    """Which part of a pipeline each file is.

    Args:
        vae: the autoencoder's file.
        texts: text encoders by the names of their parts, and what they are.
        tokenizers: by the names of their parts, folders, or files of text encoders that hold one.
    """

    vae: Path | None
    texts: Mapping[str, tuple[Path, TextKind]]
    tokenizers: Mapping[str, Path]

    @property
    def names(self) -> set[str]:
        """Names of the parts that there are files of."""
        return {*(["vae"] if self.vae is not None else []), *self.texts, *self.tokenizers}


def placed_pieces(pieces: Pieces, parts: Mapping[str, Any]) -> Placed:
    """Which parts of a pipeline files are; nothing is loaded.

    Args:
        pieces: what there is.
        parts: of the pipeline by name: library and class.

    Raises:
        FeraError: the pipeline has no place for one.
    """
    vae = pieces.vaes[0] if pieces.vaes else None
    if vae is not None and "vae" not in parts:
        raise FeraError(f"{vae.name} holds a VAE, and this pipeline has none")
    texts: dict[str, tuple[Path, TextKind]] = {}
    tokenizers: dict[str, Path] = {}
    for file, kind in pieces.texts.items():
        name = _place_of(file, kind, parts, texts)
        texts[name] = (file, kind)
        if _words_in(file) is not None and (tokenizer := name.replace("text_encoder", "tokenizer")) in parts:
            tokenizers[tokenizer] = file
    own: dict[str, Path] = {}
    for folder in pieces.tokenizers:
        own[_tokenizer_place(folder, parts, own)] = folder
    return Placed(vae, texts, tokenizers | own)


def load_pieces(placed: Placed, parts: Mapping[str, Any], config: str, dtype: Dtypes) -> dict[str, Any]:
    """Load VAE, text encoders and tokenizers.

    Args:
        placed: their files.
        parts: of the pipeline by name: library and class.
        config: folder or Hub id that has the configuration of parts whose shapes do not say it.
        dtype: as `load_base` takes it.

    Returns:
        Parts by name.

    Raises:
        FeraError: one lacks weights. diffusers and transformers raise other errors.
    """
    found: dict[str, Any] = {}
    if placed.vae is not None:
        found["vae"] = _load_vae(placed.vae, parts["vae"][1], config, _of(dtype, "vae"))
    for name, (file, kind) in placed.texts.items():
        found[name] = _load_text(file, kind, name, parts[name][1], config, _of(dtype, name))
    for name, place in placed.tokenizers.items():
        words = None if place.is_dir() else _words_in(place)
        cls = getattr(transformers, parts[name][1])
        found[name] = cls.from_pretrained(place) if words is None else _from_pieces(words, cls)
    return found


def bundled_tokenizers(parts: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Tokenizers that come with fera: CLIP's, for parts that are not given."""
    return {
        name: clip_tokenizer("!") if name == "tokenizer_2" else clip_tokenizer()
        for name, value in parts.items()
        if value[1] == "CLIPTokenizer" and name not in given
    }


def what_to_name(names: Sequence[str], parts: Mapping[str, Any]) -> str:
    """What to give for parts that are missing, in words."""
    told = []
    for name in names:
        hint = next((text for beginning, text in _HINTS.items() if str(parts[name][1]).startswith(beginning)), None)
        told.append(f"{name} ({parts[name][1]}{': ' if hint else ''}{hint or ''})")
    return ", ".join(told)


def _load_vae(file: Path, class_name: str, config: str, dtype: torch.dtype) -> Any:
    cls: Any = getattr(diffusers, class_name)
    folder = Path(config) / "vae"
    has_none = Path(config).is_dir() and not (folder / "config.json").is_file()
    settings = {} if has_none else dict(cls.load_config(config, subfolder="vae"))
    settings |= vae_settings(class_name, _bare(shapes_of(file)))
    if class_name == "AutoencoderKLQwenImage":  # of Wan's layers and names; diffusers reads those of Wan alone
        return _filled(cls.from_config(settings), convert_wan_vae_to_diffusers(load_file(file)), file).to(dtype).eval()
    if not hasattr(cls, "from_single_file"):
        raise FeraError(f"diffusers reads no single file into a {class_name}: name a pipeline's folder that has it")
    with TemporaryDirectory() as place:
        (Path(place) / "vae").mkdir()
        settings["_class_name"] = class_name
        (Path(place) / "vae" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        try:
            return cls.from_single_file(str(file), config=place, subfolder="vae", torch_dtype=dtype).eval()
        except (NotImplementedError, KeyError) as error:  # of a weight that nothing was loaded into, or that is missing
            raise FeraError(f"{file.name} lacks weights of a {class_name}, or is another model's VAE") from error


def _filled(model: Any, weights: Mapping[str, Tensor], file: Path) -> Any:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise FeraError(f"{file.name} is no VAE of {type(model).__name__}'s layers") from error
    return model


def _load_text(file: Path, kind: TextKind, name: str, class_name: str, config: str, dtype: torch.dtype) -> Any:
    cls: Any = getattr(transformers, class_name)
    check_scales(file, is_whole=False)
    weights = {key: weight for key, weight in unscaled(file, dtype).items() if key != _PIECES}
    has_config = not Path(config).is_dir() or (Path(config) / name / "config.json").is_file()
    if has_config:
        settings = cls.config_class.from_pretrained(config, subfolder=name)
    elif kind.settings is not None:
        settings = cls.config_class(**kind.settings(shapes_of(file)))
    else:
        raise FeraError(
            f"{file.name} says too little of its {class_name}: name a pipeline's folder that has its configuration"
        )
    if class_name == "CLIPTextModelWithProjection" and is_clip_l(shapes_of(file)):
        # As diffusers has it in Stable Diffusion 3, which reads the smaller encoder before any projection.
        weights["text_projection.weight"] = torch.eye(settings.hidden_size, dtype=dtype)
    try:
        model, told = cls.from_pretrained(
            None, config=settings, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        raise FeraError(f"{file.name} does not fit the {class_name} that {config} describes: {error}") from error
    if told["missing_keys"] or told["mismatched_keys"]:
        some = ", ".join(str(key) for key in sorted([*told["missing_keys"], *told["mismatched_keys"]])[:3])
        raise FeraError(f"{file.name} lacks weights of a {class_name}, or has them in other shapes: {some}")
    return model.eval()


def _place_of(file: Path, kind: TextKind, parts: Mapping[str, Any], taken: Iterable[str]) -> str:
    """Which part of a pipeline a text encoder is."""
    fitting = [name for name, value in parts.items() if value[0] == "transformers" and value[1].startswith(kind.fits)]
    if not fitting:
        raise FeraError(f"{file.name} holds {kind.name}, and this pipeline has no text encoder of that kind")
    if kind is CLIP and len(fitting) > 1:
        fitting = [fitting[0] if is_clip_l(shapes_of(file)) else fitting[1]]
    free = [name for name in fitting if name not in taken]
    if not free:
        raise FeraError(f"{file.name} is a second {kind.name} for {fitting[0]}: name one")
    return free[0]


def _words_in(file: Path) -> bytes | None:
    with safe_open(file, framework="pt") as opened:
        return bytes(opened.get_tensor(_PIECES).tolist()) if _PIECES in opened.keys() else None


def _from_pieces(words: bytes, cls: Any) -> Any:
    with TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(words)
        return cls.from_pretrained(folder)


def _tokenizer_place(folder: Path, parts: Mapping[str, Any], taken: Iterable[str]) -> str:
    wanted = {
        name: str(value[1]).removesuffix("Fast")
        for name, value in parts.items()
        if "Tokenizer" in str(value[1]) and name not in taken
    }
    stated = folder / "tokenizer_config.json"
    own = str(json.loads(stated.read_text(encoding="utf-8")).get("tokenizer_class")) if stated.is_file() else ""
    fitting = [name for name, class_name in wanted.items() if class_name == own.removesuffix("Fast")]
    if not fitting and len(wanted) == 1 and not own:
        fitting = list(wanted)
    if not fitting:
        places = ", ".join(f"{name} (a {class_name})" for name, class_name in wanted.items()) or "none that lacks one"
        raise FeraError(f"{folder} holds a {own or 'tokenizer that does not say its class'}; tokenizers here: {places}")
    return fitting[0]


def _bare(shapes: Shapes) -> Shapes:
    """Without what checkpoints of all parts put before a VAE's names."""
    return {key.removeprefix("first_stage_model.").removeprefix("vae."): shape for key, shape in shapes.items()}


def _of(dtype: Dtypes, name: str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
