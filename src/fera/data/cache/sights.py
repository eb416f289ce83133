"""Sources as encoders beside those of texts and the autoencoder see them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

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

# Raise when an entry of the same name would hold something else.
_VERSION = 1


class SightEncoding:
    """Encodes what a cache does not hold of sources.

    Args:
        pipe: the pipeline.
        family: how it sees sources.
        cache: where the conditions go.
        share: which of them are this process's.
        eyes: fingerprints of the encoders.
        framing: how pictures are cropped.
        load: brings the encoders; called if there is something to encode.
        device: where to encode.
        progress: told (what, done, of how many).
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        cache: Cache,
        share: Share,
        eyes: Sequence[str],
        framing: Framing,
        load: Callable[[], None],
        device: torch.device,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._pipe, self._family, self._cache, self._share = pipe, family, cache, share
        self._key = [_VERSION, type(pipe).__name__, list(eyes)]
        self._pictures = LatentNames(family, framing)
        self._load, self._device, self._progress = load, device, progress

    def encode(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[str]]:
        """Encode the sources of examples.

        Args:
            examples: with their sources.
            sizes: width and height that each is brought to, in pixels.

        Returns:
            For each example, and its mirror image, the entry.

        Raises:
            FeraError: a source cannot be read any more, or the cache not written.
        """
        pairs = self._family.pairs
        assert pairs is not None and pairs.see is not None
        wanted: dict[str, list[Picture]] = {}
        entries: list[list[str]] = []
        for example, size in zip(examples, sizes, strict=True):
            ways = self._pictures.seen(example, size)
            entries.append([self._name(pictures) for pictures in ways])
            wanted.update(zip(entries[-1], ways, strict=True))
        missing = [name for name in self._cache.missing(wanted) if self._share.holds(name)]
        if missing:
            self._load()
        parts = [getattr(self._pipe, name) for name in pairs.eyes] if missing else []
        move(parts, self._device)
        with self._cache.writer("seen") as writer:
            for done, name in enumerate(missing, start=1):
                conditions = pairs.see(self._pipe, [image_of(picture) for picture in wanted[name]], self._device)
                writer.add(name, {key: tensor[0] for key, tensor in conditions.items()})
                self._progress("sources", done, len(missing))
        move(parts, torch.device("cpu"))
        return entries

    def _name(self, pictures: Sequence[Picture]) -> str:
        # As files of before were named, whose endings were in the hash.
        return f"seen-{digest([*self._key, [f'{picture.name}.safetensors' for picture in pictures]])}"
