"""Captions into what a denoiser is told of them."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fera.data.buckets import Size
from fera.data.cache.cache import Cache
from fera.data.cache.framing import Framing
from fera.data.cache.latents import LatentNames
from fera.data.cache.parts import move
from fera.data.cache.pixels import Picture, image_of
from fera.data.cache.share import Share
from fera.data.cache.store import digest
from fera.data.checking import Example
from fera.models.families import Family
from fera.models.prompts import pipeline_settings, prompt_settings

# Raise when an entry of the same name would hold something else.
_VERSION = 3
_BATCH = 8


def text_key(pipe: Any, fingerprints: dict[str, str]) -> list[Any]:
    """What the conditions of any caption depend on.

    Args:
        pipe: the pipeline.
        fingerprints: of its text encoders and tokenizers, by name.
    """
    settings = {**prompt_settings(pipe), **pipeline_settings(pipe)}
    return [_VERSION, type(pipe).__name__, digest(fingerprints), settings]


class TextEncoding:
    """Encodes captions that a cache does not hold.

    Args:
        pipe: the pipeline.
        family: how it encodes captions.
        cache: where the conditions go.
        share: which of them are this process's.
        key: what the conditions of any caption depend on.
        load: brings the text encoders; called if there is something to encode.
        device: where to encode.
        progress: told (what, done, of how many).
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        cache: Cache,
        share: Share,
        key: list[Any],
        load: Callable[[], None],
        device: torch.device,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._pipe, self._family, self._cache, self._share, self._key = pipe, family, cache, share, key
        self._load, self._device, self._progress = load, device, progress

    def names(self, captions: Iterable[str]) -> dict[str, str]:
        """The entry of each caption, the empty one among them."""
        return {caption: f"text-{digest([*self._key, caption])}" for caption in dict.fromkeys([*captions, ""])}

    def encode(self, names: dict[str, str]) -> None:
        """Encode captions.

        Args:
            names: as `names` gives them.

        Raises:
            FeraError: the cache cannot be written.
        """
        captions = {name: caption for caption, name in names.items()}
        missing = self._missing(captions)
        size = 1 if self._family.encodes_alone else _BATCH
        with self._encoders(missing), self._cache.writer("text") as writer:
            for start in range(0, len(missing), size):
                chunk = missing[start : start + size]
                conditions = self._family.encode(self._pipe, [captions[name] for name in chunk], self._device)
                for row, name in enumerate(chunk):
                    writer.add(name, {key: tensor[row] for key, tensor in conditions.items()})
                self._progress("captions", start + len(chunk), len(missing))

    def encode_seen(
        self,
        sets: Sequence[tuple[Sequence[Example], Sequence[Size], Sequence[Sequence[str]]]],
        framing: Framing,
    ) -> list[list[list[dict[str, str]]]]:
        """Encode captions with encoders that see the sources too.

        Args:
            sets: examples, their sizes, and the captions of each.
            framing: how pictures are cropped.

        Returns:
            Of each set, for each example, and its mirror image, entries by caption.

        Raises:
            FeraError: a source cannot be read any more, or the cache not written.
        """
        pairs = self._family.pairs
        assert pairs is not None and pairs.encode is not None
        pictures = LatentNames(self._family, framing)
        wanted: dict[str, tuple[str, list[Picture]]] = {}

        def named(caption: str, sources: list[Picture]) -> str:
            # As the files of before were named, whose own endings were in the hash.
            seen = [f"{source.name}.safetensors" for source in sources]
            name = f"text-{digest([*self._key, caption, seen])}"
            wanted[name] = caption, sources
            return name

        found = [
            [
                [
                    {caption: named(caption, sources) for caption in dict.fromkeys([*captions, ""])}
                    for sources in pictures.seen(example, size)
                ]
                for example, size, captions in zip(*one, strict=True)
            ]
            for one in sets
        ]
        missing = self._missing(wanted)
        with self._encoders(missing), self._cache.writer("text") as writer:
            for done, name in enumerate(missing, start=1):
                caption, sources = wanted[name]
                images = [image_of(source) for source in sources]
                conditions: dict[str, Tensor] = pairs.encode(self._pipe, [caption], images, self._device)
                writer.add(name, {key: tensor[0] for key, tensor in conditions.items()})
                self._progress("captions", done, len(missing))
        return found

    def encode_timed(
        self, sets: Sequence[tuple[Sequence[Example], Sequence[Sequence[str]]]]
    ) -> list[list[list[dict[str, str]]]]:
        """Encode captions of a base that is told how long a sound is.

        Args:
            sets: sounds whose excerpts are settled, and the captions of each.

        Returns:
            Of each set, for each example, which has no mirror image, entries by caption.

        Raises:
            FeraError: the cache cannot be written.
        """
        sound = self._family.sound
        assert sound is not None
        wanted: dict[str, tuple[str, float]] = {}

        def named(caption: str, example: Example) -> str:
            assert example.excerpt is not None
            name = f"text-{digest([*self._key, caption, 'seconds', example.excerpt.told])}"
            wanted[name] = caption, example.excerpt.told
            return name

        found = [
            [
                [{caption: named(caption, example) for caption in dict.fromkeys([*captions, ""])}]
                for example, captions in zip(*one, strict=True)
            ]
            for one in sets
        ]
        missing = self._missing(wanted)
        with self._encoders(missing), self._cache.writer("text") as writer:
            for done, name in enumerate(missing, start=1):
                caption, seconds = wanted[name]
                conditions = sound.encode(self._pipe, [caption], seconds, self._device)
                writer.add(name, {key: tensor[0] for key, tensor in conditions.items()})
                self._progress("captions", done, len(missing))
        return found

    def _missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in self._cache.missing(names) if self._share.holds(name)]

    @contextmanager
    def _encoders(self, missing: Sequence[str]) -> Any:
        """The text encoders on their device inside the block, if there is something to encode."""
        if missing:
            self._load()
        parts = [getattr(self._pipe, name) for name in self._family.text_components] if missing else []
        move(parts, self._device)
        yield
        move(parts, torch.device("cpu"))
