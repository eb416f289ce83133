"""Latents and text embeddings, computed once and kept on disk.

One safetensors file a picture, one a caption and one a mask. A picture's latent is the mean of the autoencoder's
posterior: around it the usual autoencoders are all but certain, and no draw needs to be kept or repeated.

A file's name is a hash of everything that its content depends on: the picture's or caption's own content, the weights
of the encoder, size, crop, mirroring, dtype. A cache can therefore be shared between runs and never be stale.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from fera.data.buckets import Size, assign_sizes
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.store import digest, fingerprint, write
from fera.data.checking import Example, crop_offset
from fera.data.images import load_image
from fera.data.masks import load_mask
from fera.data.tensors import to_tensor, to_weights
from fera.errors import FeraError
from fera.models.families import Family, latent_scale
from fera.models.placement import place
from fera.models.prompts import prompt_settings

# Raise when a file of the same name would hold something else.
_CACHE_VERSION = 2
_MASK_VERSION = 3
_TEXT_VERSION = 3
_BATCH = 8

Progress = Callable[[str, int, int], None]


def _as_it_is(caption: str) -> list[str]:
    return [caption]


@dataclass(frozen=True)
class Encoder:
    """Encodes examples with a pipeline's own parts, or finds them encoded.

    Args:
        pipe: the pipeline, its autoencoder and text encoders loaded.
        family: how it encodes captions.
        folder: the folder of the cache.
        device: where to compute.
        buckets: (width, height) in pixels; each picture is brought to the nearest.
        center_crop: as in the configuration.
        random_flip: as in the configuration.
        seed: the seed of crops off centre.
        progress: told (what, done, of how many).
        captions: a caption to the variants of it to encode.
        mask_min_value: as in the configuration.
        with_texts: whether to encode captions.
    """

    pipe: Any
    family: Family
    folder: Path
    device: torch.device
    buckets: Sequence[Size]
    center_crop: bool
    random_flip: bool
    seed: int
    progress: Progress
    captions: Callable[[str], list[str]] = _as_it_is
    mask_min_value: float = 0.0
    with_texts: bool = True

    @torch.no_grad()
    def encode(self, examples: Sequence[Example]) -> EncodedSet:
        """Encode examples that the cache does not hold yet.

        Args:
            examples: with their digests; one that is there several times is encoded once.
        """
        variants = [self.captions(example.caption) for example in examples]
        texts = self._encode_captions([caption for captions in variants for caption in captions])
        sizes = assign_sizes(examples, self.buckets)
        is_masked = any(example.mask for example in examples)
        return EncodedSet(
            names=[example.name for example in examples],
            sizes=sizes,
            latents=self._encode_pictures(examples, sizes),
            captions=variants,
            texts=texts,
            units=self.family.units_of(self.pipe.vae),
            masks=self._encode_masks(examples, sizes) if is_masked else [],
            mask_min_value=self.mask_min_value,
            weights=[example.weight for example in examples] if any(e.weight != 1 for e in examples) else [],
            placed=self._place(examples, sizes),
        )

    def _place(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[dict[str, tuple[float, ...]]]]:
        placed = self.family.placed
        if placed is None:
            return []
        offsets = [crop_offset(example, center_crop=self.center_crop, seed=self.seed) for example in examples]
        return [
            [placed(place(example.size, size, offset, mirrored=mirrored)) for mirrored in self._mirrorings]
            for example, size, offset in zip(examples, sizes, offsets, strict=True)
        ]

    def _encode_captions(self, captions: Sequence[str]) -> dict[str, Path]:
        if not self.with_texts:
            return {}
        parts = {name: getattr(self.pipe, name) for name in self.family.text_components}
        encoder = digest({name: fingerprint(part) for name, part in parts.items()})
        family = type(self.pipe).__name__
        settings = {**prompt_settings(self.pipe), **_settings(self.pipe)}
        paths = {
            caption: self.folder / f"text-{digest([_TEXT_VERSION, family, encoder, settings, caption])}.safetensors"
            for caption in dict.fromkeys([*captions, ""])
        }
        missing = [caption for caption, path in paths.items() if not path.exists()]
        if missing:
            _move(parts.values(), self.device)
        size = 1 if self.family.encodes_alone else _BATCH
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            conditions = self.family.encode(self.pipe, chunk, self.device)
            for row, caption in enumerate(chunk):
                write(paths[caption], {name: tensor[row] for name, tensor in conditions.items()})
            self.progress("captions", start + len(chunk), len(missing))
        _move(parts.values(), torch.device("cpu"))
        return paths

    def _encode_pictures(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[Path]]:
        vae = self.pipe.vae
        encoder = fingerprint(vae)
        own = self.family.latents
        # The autoencoder's own latents serve all families that scale them; the others' are their own.
        made_by = [] if own is None else [f"{own.__module__}.{own.__qualname__}"]
        paths: list[list[Path]] = []
        missing: dict[Path, _Missing] = {}
        for example, size in zip(examples, sizes, strict=True):
            offset = crop_offset(example, center_crop=self.center_crop, seed=self.seed)
            is_whole = example.size[0] * size[1] == example.size[1] * size[0]
            paths.append([])
            for mirrored in self._mirrorings:
                side = size[0] if size[0] == size[1] else size
                depends_on = [example.digest, side, None if is_whole else offset, mirrored]
                # Only of these were there files with other colours, of before profiles were heeded.
                depends_on += ["sRGB"] if example.colours else []
                path = self.folder / f"latent-{digest([_CACHE_VERSION, encoder, *depends_on, *made_by])}.safetensors"
                paths[-1].append(path)
                if not path.exists():
                    missing[path] = _Missing(example, size, offset, mirrored, path)
        if missing:
            vae.to(self.device)
        done = 0
        for chunk in _chunks(list(missing.values())):
            pixels = torch.stack([_pixels(picture) for picture in chunk])
            means = self.family.encode_pictures(vae, pixels.to(self.device, vae.dtype))
            for mean, picture in zip(means, chunk, strict=True):
                write(picture.path, {"mean": mean})
            done += len(chunk)
            self.progress("pictures", done, len(missing))
        vae.to("cpu")
        return paths

    def _encode_masks(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[Path]]:
        """As `_encode_pictures`, for masks at the size of the latents."""
        factor = latent_scale(self.pipe)
        paths: list[list[Path]] = []
        for example, size in zip(examples, sizes, strict=True):
            offset = crop_offset(example, center_crop=self.center_crop, seed=self.seed)
            latent_size = (size[0] // factor, size[1] // factor)
            depends_on = [_MASK_VERSION, example.digest, example.mask_digest, size, latent_size, offset]
            files = [
                self.folder / f"mask-{digest([*depends_on, mirrored])}.safetensors" for mirrored in self._mirrorings
            ]
            paths.append(files if example.mask else [])
            if not all(path.exists() for path in paths[-1]):
                mask = _mask_of(example)
                weight = torch.ones(1, *latent_size[::-1])
                if mask is not None:
                    weight = to_weights(mask, size, latent_size, offset)
                for path, mirrored in zip(files, self._mirrorings, strict=True):
                    write(path, {"weight": weight.flip(-1) if mirrored else weight})
        return paths

    @property
    def _mirrorings(self) -> tuple[bool, ...]:
        return (False, True) if self.random_flip else (False,)


@dataclass(frozen=True)
class _Missing:
    """A picture to encode: what, to which size, cropped where, mirrored or not, and into which file."""

    example: Example
    size: Size
    offset: float
    mirrored: bool
    path: Path


def _settings(pipe: Any) -> dict[str, str]:
    """What a pipeline makes of a caption besides its parts: the code of diffusers, and its settings."""
    settings = {name: repr(value) for name, value in pipe.config.items() if name not in pipe.components}
    return {name: value for name, value in settings.items() if name[0] != "_"} | {"diffusers": diffusers.__version__}


def _chunks(missing: Sequence[_Missing]) -> Iterator[list[_Missing]]:
    """Pictures to encode together: of one size."""
    for _, pictures in groupby(sorted(missing, key=lambda picture: picture.size), key=lambda picture: picture.size):
        same_size = list(pictures)
        for start in range(0, len(same_size), _BATCH):
            yield same_size[start : start + _BATCH]


def _pixels(picture: _Missing) -> Tensor:
    try:
        pixels = to_tensor(load_image(picture.example.image), picture.size, picture.offset)
    except (ValueError, OSError) as error:
        raise FeraError(f"{picture.example.origin} {error}; it was readable a moment ago") from error
    return pixels.flip(-1) if picture.mirrored else pixels


def _mask_of(example: Example) -> Any:
    try:
        return load_mask(example)
    except (ValueError, OSError) as error:
        raise FeraError(f"{example.origin} {error}; it was usable a moment ago") from error


def _move(parts: Any, device: torch.device) -> None:
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)
