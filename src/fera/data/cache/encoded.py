"""Encoded pictures and captions, as training reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fera.data.buckets import Shape, Size
from fera.data.cache.cache import Cache
from fera.models.conditions import together
from fera.models.latents import AS_THEY_ARE, LatentUnits


@dataclass(frozen=True)
class Batch:
    """Encoded examples.

    Args:
        latents: in the denoiser's units, shape (B, C, H, W), or (B, C, L) of sounds, float32.
        conditions: what the denoiser takes besides, each with B along its first axis.
        names: the names of the pictures.
        captions: the captions of the examples, as they are trained on.
        mask: where the loss counts, shape (B, 1, H, W), float32, in [0, 1]; None where it counts everywhere.
        weights: the weights of each example's loss, shape (B,), float32; None where all are 1.
    """

    latents: Tensor
    conditions: dict[str, Tensor]
    names: list[str]
    captions: list[str]
    mask: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class EncodedSet:
    """Examples whose latents and embeddings are on disk.

    Args:
        names: the names of the pictures.
        sizes: width and height in pixels that each was brought to and, of clips, the number of frames; of sounds,
            their samples.
        cache: where the entries lie that are named below.
        latents: for each picture its entry, and where flips were asked for a second one, mirrored.
        captions: for each picture one or more orders of its tags.
        texts: entry of each caption, the empty one among them; empty where text encoders train and make all there is.
        units: how the autoencoder's latents become the denoiser's.
        masks: for each picture as `latents`, and nothing where all of it counts; empty where no picture has a mask.
        mask_min_value: weight of the loss where a mask is black.
        weights: the weights of each picture's loss; empty where all are 1.
        placed: what the denoiser is told of where a picture's pixels lie in it: for each picture, and where flips were
            asked for for its mirror image, the conditions by name; empty where it is told nothing.
        sources: for each picture its sources in order, each as in `latents`; empty where no picture has any.
        source_sizes: width and height in pixels that each source was brought to.
        source_units: how the autoencoder's latents become a source's.
        holes: for each picture as `latents`, what is to be painted; empty where nothing is filled.
        seen_texts: for each picture, and where flips were asked for for its mirror image, the entry of each of its
            captions, of text encoders that see its sources or are told how long a sound is; empty where they see
            captions alone.
        seen: for each picture as `latents`, its sources as another encoder sees them; empty where none does.
    """

    names: list[str]
    sizes: list[Shape]
    cache: Cache = field(compare=False, repr=False)
    latents: list[list[str]]
    captions: list[list[str]]
    texts: dict[str, str]
    units: LatentUnits
    masks: list[list[str]] = field(default_factory=list)
    mask_min_value: float = 0.0
    weights: list[float] = field(default_factory=list)
    placed: list[list[dict[str, tuple[float, ...]]]] = field(default_factory=list)
    sources: list[list[list[str]]] = field(default_factory=list)
    source_sizes: list[list[Size]] = field(default_factory=list)
    source_units: LatentUnits = AS_THEY_ARE
    holes: list[list[str]] = field(default_factory=list)
    seen_texts: list[list[dict[str, str]]] = field(default_factory=list)
    seen: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def groups(self) -> list[tuple[Shape, ...]]:
        """What rows of one batch share: the shape of the picture or clip, and the sizes of its sources."""
        if not self.sources:
            return [(size,) for size in self.sizes]
        return [(size, *sources) for size, sources in zip(self.sizes, self.source_sizes, strict=True)]

    @property
    def entries(self) -> Iterator[str]:
        """Names of all that it takes from the cache."""
        for ways in (*self.latents, *self.masks, *self.holes, *self.seen):
            yield from ways
        yield from self.texts.values()
        yield from (name for sources in self.sources for ways in sources for name in ways)
        yield from (name for ways in self.seen_texts for by_caption in ways for name in by_caption.values())

    def latent(self, row: int) -> Tensor:
        """Latent of one example in the denoiser's units, shape (C, H, W) or (C, L)."""
        return self.units.of(self.cache.read(self.latents[row][0])["mean"])

    def batch(
        self,
        rows: Sequence[int],
        *,
        flipped: Sequence[bool] = (),
        without_caption: Sequence[bool] = (),
        variants: Sequence[int] = (),
    ) -> Batch:
        """Read some examples.

        Args:
            rows: which, all of one size.
            flipped: for each row whether to take the mirrored picture; none when left out.
            without_caption: for each row whether to take the empty caption; none when left out.
            variants: for each row which order of its caption's tags to take, modulo their number; the first when left
                out.

        Raises:
            FeraError: a file was removed or damaged since it was written.
        """
        flipped = flipped or [False] * len(rows)
        without_caption = without_caption or [False] * len(rows)
        variants = variants or [0] * len(rows)
        latents = [self.cache.read(self.latents[row][flip]) for row, flip in zip(rows, flipped, strict=True)]
        captions = [
            "" if empty else self.captions[row][variant % len(self.captions[row])]
            for row, empty, variant in zip(rows, without_caption, variants, strict=True)
        ]
        texts: list[dict[str, Tensor]] = [{}]
        if self.seen_texts:
            told = zip(rows, flipped, captions, strict=True)
            texts = [self.cache.read(self.seen_texts[row][flip][caption]) for row, flip, caption in told]
        elif self.texts:
            texts = [self.cache.read(self.texts[caption]) for caption in captions]
        return Batch(
            latents=self.units.of(torch.stack([latent["mean"] for latent in latents])),
            conditions={
                **together(texts),
                **self._placed(rows, flipped),
                **self._sources(rows, flipped),
                **self._seen(rows, flipped),
            },
            names=[self.names[row] for row in rows],
            captions=captions,
            mask=self._mask(rows, flipped, latents[0]["mean"].shape[1:]) if self.masks else None,
            weights=torch.tensor([self.weights[row] for row in rows]) if self.weights else None,
        )

    def _sources(self, rows: Sequence[int], flipped: Sequence[bool]) -> dict[str, Tensor]:
        chosen = list(zip(rows, flipped, strict=True))
        found = {}
        for number in range(len(self.sources[rows[0]]) if self.sources else 0):
            entries = [self.sources[row][number][flip] for row, flip in chosen]
            means = torch.stack([self.cache.read(entry)["mean"] for entry in entries])
            found[f"source_{number}"] = self.source_units.of(means)
        if self.holes:
            found["hole"] = torch.stack([self.cache.read(self.holes[row][flip])["weight"] for row, flip in chosen])
        return found

    def _seen(self, rows: Sequence[int], flipped: Sequence[bool]) -> dict[str, Tensor]:
        if not self.seen:
            return {}
        return together([self.cache.read(self.seen[row][flip]) for row, flip in zip(rows, flipped, strict=True)])

    def _placed(self, rows: Sequence[int], flipped: Sequence[bool]) -> dict[str, Tensor]:
        if not self.placed:
            return {}
        told = [self.placed[row][flip] for row, flip in zip(rows, flipped, strict=True)]
        return {name: torch.tensor([conditions[name] for conditions in told]).float() for name in told[0]}

    def _mask(self, rows: Sequence[int], flipped: Sequence[bool], shape: Sequence[int]) -> Tensor:
        masks = [
            self.cache.read(self.masks[row][flip])["weight"] if self.masks[row] else torch.ones(1, *shape)
            for row, flip in zip(rows, flipped, strict=True)
        ]
        return self.mask_min_value + (1 - self.mask_min_value) * torch.stack(masks)
