"""Pictures, clips and sounds into latents: the means of the autoencoder's posterior.

Around its mean the posterior of the usual autoencoders is all but certain, and no draw needs to be kept or repeated.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fera.data.buckets import Size
from fera.data.cache.cache import Cache
from fera.data.cache.framing import Framing, source_size
from fera.data.cache.pixels import Picture, chunks, pixels_of
from fera.data.cache.share import Share
from fera.data.cache.store import digest
from fera.data.checking import Example
from fera.data.example import Source
from fera.models.families import Family
from fera.models.pairs import GivenFrames

# Raise when an entry of the same name would hold something else.
_VERSION = 2


class LatentNames:
    """Names of latents: each a hash of all that it depends on.

    Args:
        family: of the pipeline.
        framing: how pictures are cropped.
        vae: fingerprint of the autoencoder; empty for names that only tell pictures apart.
    """

    def __init__(self, family: Family, framing: Framing, vae: str = "") -> None:
        self._family, self._framing = family, framing
        own = family.latents
        self._before = [_VERSION, vae] if vae else []
        # The autoencoder's own latents serve all families that scale them; the others' are their own.
        self._after = [f"{own.__module__}.{own.__qualname__}"] if vae and own is not None else []

    def of(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[Picture]]:
        """Of each example its picture, as it is and mirrored."""
        return [
            self._ways(example, Source(example.image, example.digest, example.size, example.colours), size, False)
            for example, size in zip(examples, sizes, strict=True)
        ]

    def of_sources(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[list[Picture]]]:
        """Likewise of each of its sources; what is to be painted is grey in them."""
        is_filled = self._family.pairs is not None and self._family.pairs.hole
        frames = self._family.pairs.frames if self._family.pairs is not None else None
        if frames is not None:
            return [[self._given(e, size, frames)] for e, size in zip(examples, sizes, strict=True)]
        return [
            [self._ways(e, source, source_size(self._family, e, source, size), is_filled) for source in e.sources]
            for e, size in zip(examples, sizes, strict=True)
        ]

    def seen(self, example: Example, size: Size) -> list[list[Picture]]:
        """For each way in which an example is encoded its sources, as encoders beside the autoencoder see them."""
        return [
            [
                self._picture(example, source, source_size(self._family, example, source, size), mirrored, False)
                for source in example.sources
            ]
            for mirrored in self._framing.mirrorings
        ]

    def _given(self, example: Example, size: Size, frames: GivenFrames) -> list[Picture]:
        """What the denoiser is told of an example's given frames."""
        function = frames.latents
        numbers = tuple(source.frame or 0 for source in example.sources)
        after = [f"{function.__module__}.{function.__qualname__}", numbers]
        source = Source(example.image, example.digest, example.size, example.colours)
        made = [self._picture(example, source, size, way, False, after) for way in self._framing.mirrorings]
        return [replace(picture, given=numbers) for picture in made]

    def _ways(self, example: Example, source: Source, size: Size, blank: bool) -> list[Picture]:
        return [self._picture(example, source, size, mirrored, blank) for mirrored in self._framing.mirrorings]

    def _picture(
        self, example: Example, source: Source, size: Size, mirrored: bool, blank: bool, after: list[Any] | None = None
    ) -> Picture:
        """A picture of an example, the one that is trained on or a source: they are cropped alike."""
        offset = self._framing.offset(example)
        is_whole = source.size[0] * size[1] == source.size[1] * size[0]
        side = size[0] if size[0] == size[1] else size
        depends_on = [source.digest, side, None if is_whole else offset, mirrored]
        # Only of these were there entries with other colours, of before profiles were heeded.
        depends_on += ["sRGB"] if source.colours else []
        depends_on += [example.mask_digest] if blank else []
        if (part := example.part) is not None:
            depends_on += ["frames", part.start, part.frames, part.frame_rate]
        depends_on += [] if source.frame is None else ["frame", source.frame]
        depends_on += [] if example.excerpt is None else ["samples", *example.excerpt.content]
        name = f"latent-{digest([*self._before, *depends_on, *(self._after if after is None else after)])}"
        given = () if source.frame is None else (source.frame,)
        return Picture(source.path, example, size, offset, mirrored, name, blank, given)


def encode_pictures(
    pictures: Sequence[Picture],
    cache: Cache,
    share: Share,
    *,
    vae: Callable[[], Any],
    family: Family,
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> None:
    """Encode what is missing of some pictures.

    Args:
        pictures: the pictures; one that is there several times is encoded once.
        cache: where latents go.
        share: which of them are this process's.
        vae: gives the autoencoder with its weights; called if there is something to encode.
        family: of the pipeline.
        device: where to compute.
        progress: told (what, done, of how many).

    Raises:
        FeraError: a picture cannot be read any more, or the cache not written.
    """
    by_name = {picture.name: picture for picture in pictures}
    missing = [by_name[name] for name in cache.missing(by_name) if share.holds(name)]
    if not missing:
        return
    model = vae()
    model.to(device)
    frames = family.pairs.frames if family.pairs is not None else None
    done = 0
    with cache.writer("latent") as writer:
        for chunk, pixels in _decoded(list(chunks(missing))):
            pixels = pixels.to(device, model.dtype)
            if frames is not None and chunk[0].given:  # clips go one at a time
                means = frames.latents(model, list(pixels.unbind(2)), chunk[0].example.frames).float()
            else:
                means = family.encode_pictures(model, pixels)
            for mean, picture in zip(means, chunk, strict=True):
                writer.add(picture.name, {"mean": mean})
            done += len(chunk)
            progress("pictures", done, len(missing))
    model.to("cpu")


def _decoded(parts: Sequence[list[Picture]]) -> Iterator[tuple[list[Picture], Tensor]]:
    """Pictures and their pixels: a chunk is decoded while the one before it is encoded. Of clips one is in memory."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[Tensor] | None = None
        for place, part in enumerate(parts):
            pixels = _pixels(part) if ahead is None else ahead.result()
            coming = parts[place + 1] if place + 1 < len(parts) else []
            ahead = pool.submit(_pixels, coming) if coming and coming[0].example.frames == 1 else None
            yield part, pixels


def _pixels(chunk: Sequence[Picture]) -> Tensor:
    return torch.stack([pixels_of(picture) for picture in chunk])
