"""Latents and text embeddings, computed once and kept on disk.

An entry a picture, one a caption and one a mask. Its name is a hash of everything that its content depends on: the
picture's or caption's own content, the weights of the encoder, size, crop, mirroring, dtype. A cache can therefore be
shared between runs and never be stale.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from fera.data.buckets import Size, assign_shapes, assign_sizes
from fera.data.cache.cache import Cache
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.fingerprints import fingerprint, user_fingerprints
from fera.data.cache.framing import Framing, placed_conditions, source_size
from fera.data.cache.latents import LatentNames, encode_pictures
from fera.data.cache.loss_masks import encode_masks
from fera.data.cache.parts import Parts
from fera.data.cache.share import ALONE, Share
from fera.data.cache.sights import SightEncoding
from fera.data.cache.texts import TextEncoding, text_key
from fera.data.checking import Example
from fera.models.families import Family, latent_scale

Progress = Callable[[str, int, int], None]
Captions = Callable[[str], list[str]]
Load = Callable[[], None]


def _as_it_is(caption: str) -> list[str]:
    return [caption]


def _unheard(line: str) -> None:
    """For who does not listen."""


@dataclass(frozen=True)
class Encoder:
    """Encodes examples with a pipeline's own parts, or finds them encoded.

    Args:
        pipe: the pipeline; parts of it that wait come for as long as there is something to encode.
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
        parts: how parts of the pipeline come that wait; None where none waits.
        text_device: where text encoders compute; on the device too when left out.
        share: which part of what is missing is this process's to encode.
        say: told of files of the cache that cannot be used.
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
    captions: Captions = _as_it_is
    mask_min_value: float = 0.0
    with_texts: bool = True
    parts: Parts | None = None
    text_device: torch.device | None = None
    share: Share = ALONE
    say: Callable[[str], None] = _unheard

    def encode(self, examples: Sequence[Example]) -> EncodedSet:
        """Encode examples that the cache does not hold yet.

        Args:
            examples: with their digests; one that is there several times is encoded once.
        """
        return self.encode_sets([(examples, self.captions)])[0]

    @torch.no_grad()
    def encode_sets(
        self,
        sets: Sequence[tuple[Sequence[Example], Captions]],
        after_captions: Callable[[list[Any]], None] | None = None,
    ) -> list[EncodedSet]:
        """Encode several sets: the captions of all, then the pictures of all, so that each encoder comes once.

        Of a cache that others fill too, this process's part is encoded; what they did not get to in the end as well.

        Args:
            sets: examples as `encode` takes them, and what stands in the place of `captions` for them.
            after_captions: called once with what the conditions of any caption depend on: while the text encoders that
                were needed are still there or, by all processes but the first, once that one has called it.
        """
        # A file of a clip is read in milliseconds, and a step takes longer: nothing is gained by keeping it.
        is_of_clips = any(example.part for examples, _ in sets for example in examples)
        cache = Cache(self.folder, self.say, **({"memory": 0} if is_of_clips else {}))
        is_first = self.share.number == 0
        encoded, key = self._fill(sets, cache, self.share, after_captions if is_first else None)
        if self.share.has_others:
            self.share.wait()
            cache.look()
            if after_captions is not None and not is_first:
                after_captions(key)
            encoded, _ = self._fill(sets, cache, ALONE, None)
        cache.keep(name for one in encoded for name in one.entries)
        return encoded

    def _fill(
        self,
        sets: Sequence[tuple[Sequence[Example], Captions]],
        cache: Cache,
        share: Share,
        after_captions: Callable[[list[Any]], None] | None,
    ) -> tuple[list[EncodedSet], list[Any]]:
        """Encode a share of what is missing; also gives what the conditions of any caption depend on."""
        pairs = self.family.pairs
        variants = [[captions(example.caption) for example in examples] for examples, captions in sets]
        sizes = [assign_sizes(examples, self.buckets) for examples, _ in sets]
        texts: dict[str, str] = {}
        seen_texts: list[list[list[dict[str, str]]]] = [[] for _ in sets]
        sees_sources = pairs is not None and pairs.encode is not None
        key: list[Any] = []
        with self._on_demand(self.family.text_components) as load:
            if sees_sources or self.with_texts or after_captions:
                parts = self.family.text_components
                key = text_key(self.pipe, {name: self._fingerprint(name, load) for name in parts})
            text_device = self.text_device or self.device
            encoding = TextEncoding(self.pipe, self.family, cache, share, key, load, text_device, self.progress)
            if sees_sources:
                whole = [(examples, sizes[i], variants[i]) for i, (examples, _) in enumerate(sets)]
                seen_texts = encoding.encode_seen(whole, self._framing)
            elif self.family.sound is not None:
                timed = [(examples, variants[i]) for i, (examples, _) in enumerate(sets)]
                seen_texts = encoding.encode_timed(timed)
            elif self.with_texts:
                texts = encoding.names(caption for some in variants for captions in some for caption in captions)
                encoding.encode(texts)
            if after_captions is not None:
                after_captions(key)
        seen: list[list[list[str]]] = [[] for _ in sets]
        if pairs is not None and pairs.see is not None:
            with self._on_demand(pairs.eyes) as load:
                eyes = [self._fingerprint(name, load) for name in pairs.eyes]
                sights = SightEncoding(
                    self.pipe, self.family, cache, share, eyes, self._framing, load, self.device, self.progress
                )
                seen = [sights.encode(examples, sizes[i]) for i, (examples, _) in enumerate(sets)]
        with self._on_demand(["vae"]) as load:
            names = LatentNames(self.family, self._framing, self._fingerprint("vae", load))
            pictures = [names.of(examples, sizes[i]) for i, (examples, _) in enumerate(sets)]
            sources = [names.of_sources(examples, sizes[i]) for i, (examples, _) in enumerate(sets)]

            def vae() -> Any:
                load()
                return self.pipe.vae

            encode_pictures(
                [
                    *(picture for some in pictures for ways in some for picture in ways),
                    *(picture for some in sources for every in some for ways in every for picture in ways),
                ],
                cache,
                share,
                vae=vae,
                family=self.family,
                device=self.device,
                progress=self.progress,
            )
        return [
            EncodedSet(
                names=[example.name for example in examples],
                sizes=assign_shapes(examples, self.buckets),
                cache=cache,
                latents=[[picture.name for picture in ways] for ways in pictures[i]],
                captions=variants[i],
                texts=texts,
                units=self.family.units_of(self.pipe.vae),
                mask_min_value=self.mask_min_value,
                weights=[example.weight for example in examples] if any(e.weight != 1 for e in examples) else [],
                placed=placed_conditions(self.family, self._framing, examples, sizes[i]),
                sources=[[[picture.name for picture in ways] for ways in every] for every in sources[i]]
                if any(sources[i])
                else [],
                source_sizes=[
                    [source_size(self.family, example, source, size) for source in example.sources]
                    for example, size in zip(examples, sizes[i], strict=True)
                ],
                source_units=self.family.source_units_of(self.pipe.vae),
                seen_texts=seen_texts[i],
                seen=seen[i],
                **self._masks(examples, sizes[i], cache, share),
            )
            for i, (examples, _) in enumerate(sets)
        ], key

    def _masks(
        self, examples: Sequence[Example], sizes: Sequence[Size], cache: Cache, share: Share
    ) -> dict[str, list[list[str]]]:
        """Entries of masks, or of what is to be painted, by the name that `EncodedSet` has for them."""
        is_filled = self.family.pairs is not None and self.family.pairs.hole
        if not is_filled and not any(example.mask for example in examples):
            return {}
        factor = 1 if is_filled else latent_scale(self.pipe)
        entries = encode_masks(examples, sizes, cache, share, self._framing, factor=factor, is_hole=is_filled)
        return {"holes" if is_filled else "masks": entries}

    @property
    def _framing(self) -> Framing:
        return Framing(self.center_crop, self.random_flip, self.seed)

    @contextmanager
    def _on_demand(self, names: Sequence[str]) -> Iterator[Load]:
        """Parts that come when they are called for, and wait again after the block, if they do."""
        with ExitStack() as stack:

            def load() -> None:
                if self.parts is not None:
                    stack.enter_context(self.parts.using(names))

            yield load

    def _fingerprint(self, name: str, load: Load) -> str:
        """Of a part of the pipeline; one that waits is loaded where its files are not known."""
        part = getattr(self.pipe, name)
        if self.parts is None or not isinstance(part, nn.Module):
            return fingerprint(part)
        files, known = self.parts.files(name), user_fingerprints()
        versions = [diffusers.__version__, transformers.__version__]
        loaded = [type(part).__name__, str(part.dtype), versions]
        found = known.known(files, loaded)
        if found is None:
            load()
            found = fingerprint(getattr(self.pipe, name))
            known.note(files, loaded, found)
        return found
