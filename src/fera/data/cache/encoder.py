"""Latents and text embeddings, computed once and kept on disk.

One safetensors file a picture, one a caption and one a mask. A picture's latent is the mean of the autoencoder's
posterior: around it the usual autoencoders are all but certain, and no draw needs to be kept or repeated.

A file's name is a hash of everything that its content depends on: the picture's or caption's own content, the weights
of the encoder, size, crop, mirroring, dtype. A cache can therefore be shared between runs and never be stale.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from fera.data.buckets import Size, assign_shapes, assign_sizes
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.fingerprints import user_fingerprints
from fera.data.cache.mask_files import mask_files
from fera.data.cache.parts import Parts, move
from fera.data.cache.pixels import Picture, chunks, image_of, pixels_of
from fera.data.cache.store import Memory, digest, fingerprint, write
from fera.data.checking import Example, crop_offset
from fera.data.example import Source
from fera.models.families import Family, latent_scale
from fera.models.pairs import GivenFrames
from fera.models.placement import place
from fera.models.prompts import pipeline_settings, prompt_settings

# Raise when a file of the same name would hold something else.
_CACHE_VERSION = 2
_TEXT_VERSION = 3
_SEEN_VERSION = 1
_BATCH = 8

Progress = Callable[[str, int, int], None]
Captions = Callable[[str], list[str]]
Load = Callable[[], None]


def _as_it_is(caption: str) -> list[str]:
    return [caption]


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

        Args:
            sets: examples as `encode` takes them, and what stands in the place of `captions` for them.
            after_captions: called with what the conditions of any caption depend on, while the text encoders that were
                needed are still there.
        """
        pairs = self.family.pairs
        variants = [[captions(example.caption) for example in examples] for examples, captions in sets]
        sizes = [assign_sizes(examples, self.buckets) for examples, _ in sets]
        texts: dict[str, Path] = {}
        seen_texts: list[list[list[dict[str, Path]]]] = [[] for _ in sets]
        seen: list[list[list[Path]]] = [[] for _ in sets]
        with self._on_demand(self.family.text_components) as load:
            sees_sources = pairs is not None and pairs.encode is not None
            key = self._text_key(load) if sees_sources or self.with_texts or after_captions else []
            if sees_sources:
                seen_texts = [
                    self._encode_seen(examples, sizes[i], variants[i], key, load)
                    for i, (examples, _) in enumerate(sets)
                ]
            elif self.with_texts:
                every = [caption for some in variants for captions in some for caption in captions]
                texts = self._encode_captions(every, key, load)
            if after_captions is not None:
                after_captions(key)
        if pairs is not None and pairs.see is not None:
            with self._on_demand(pairs.eyes) as load:
                seen = [self._see(examples, sizes[i], load) for i, (examples, _) in enumerate(sets)]
        with self._on_demand(["vae"]) as load:
            vae = self._fingerprint("vae", load)
            pictures = [self._encode_pictures(examples, sizes[i], vae, load) for i, (examples, _) in enumerate(sets)]
        return [
            self._encoded(examples, sizes[i], variants[i], pictures[i], seen_texts[i], seen[i], texts)
            for i, (examples, _) in enumerate(sets)
        ]

    def _encoded(
        self,
        examples: Sequence[Example],
        sizes: Sequence[Size],
        variants: list[list[str]],
        pictures: tuple[list[list[Path]], list[list[list[Path]]]],
        seen_texts: list[list[dict[str, Path]]],
        seen: list[list[Path]],
        texts: dict[str, Path],
    ) -> EncodedSet:
        latents, sources = pictures
        is_filled = self.family.pairs is not None and self.family.pairs.hole
        is_masked = any(example.mask for example in examples) and not is_filled
        return EncodedSet(
            names=[example.name for example in examples],
            sizes=assign_shapes(examples, self.buckets),
            latents=latents,
            captions=variants,
            texts=texts,
            units=self.family.units_of(self.pipe.vae),
            masks=self._masks(examples, sizes, latent_scale(self.pipe)) if is_masked else [],
            mask_min_value=self.mask_min_value,
            weights=[example.weight for example in examples] if any(e.weight != 1 for e in examples) else [],
            placed=self._place(examples, sizes),
            sources=sources if any(sources) else [],
            source_sizes=[
                [self._source_size(example, source, size) for source in example.sources]
                for example, size in zip(examples, sizes, strict=True)
            ],
            source_units=self.family.source_units_of(self.pipe.vae),
            holes=self._masks(examples, sizes, None) if is_filled else [],
            seen_texts=seen_texts,
            seen=seen,
            # A file of a clip is read in milliseconds, and a step takes longer: nothing is gained by keeping it.
            memory=Memory(0) if any(example.part for example in examples) else Memory(),
        )

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

    def _place(self, examples: Sequence[Example], sizes: Sequence[Size]) -> list[list[dict[str, tuple[float, ...]]]]:
        placed = self.family.placed
        if placed is None:
            return []
        offsets = [crop_offset(example, center_crop=self.center_crop, seed=self.seed) for example in examples]
        return [
            [placed(place(example.size, size, offset, mirrored=mirrored)) for mirrored in self._mirrorings]
            for example, size, offset in zip(examples, sizes, offsets, strict=True)
        ]

    def _source_size(self, example: Example, source: Source, size: Size) -> Size:
        """The size that a source is brought to."""
        own = self.family.pairs.size if self.family.pairs is not None else None
        return size if own is None else own(source.size, example.size, size)

    def _text_key(self, load: Load) -> list[Any]:
        """What the conditions of any caption depend on."""
        encoder = digest({name: self._fingerprint(name, load) for name in self.family.text_components})
        settings = {**prompt_settings(self.pipe), **pipeline_settings(self.pipe)}
        return [_TEXT_VERSION, type(self.pipe).__name__, encoder, settings]

    def _encode_seen(
        self,
        examples: Sequence[Example],
        sizes: Sequence[Size],
        variants: Sequence[Sequence[str]],
        key: list[Any],
        load: Load,
    ) -> list[list[dict[str, Path]]]:
        """Captions of encoders that see the sources too: for each example, and its mirror image, by caption."""
        assert self.family.pairs is not None and self.family.pairs.encode is not None
        found: list[list[dict[str, Path]]] = []
        missing: dict[Path, tuple[str, list[Picture]]] = {}
        for example, size, captions in zip(examples, sizes, variants, strict=True):
            found.append([])
            for mirrored in self._mirrorings:
                pictures = self._sources_of(example, size, mirrored)
                seen = [picture.path.name for picture in pictures]
                paths = {
                    caption: self.folder / f"text-{digest([*key, caption, seen])}.safetensors"
                    for caption in dict.fromkeys([*captions, ""])
                }
                found[-1].append(paths)
                missing |= {path: (caption, pictures) for caption, path in paths.items() if not path.exists()}
        if missing:
            load()
        parts = [getattr(self.pipe, name) for name in self.family.text_components] if missing else []
        move(parts, self._text_device)
        for done, (path, (caption, pictures)) in enumerate(missing.items(), start=1):
            images = [image_of(picture) for picture in pictures]
            conditions = self.family.pairs.encode(self.pipe, [caption], images, self._text_device)
            write(path, {name: tensor[0] for name, tensor in conditions.items()})
            self.progress("captions", done, len(missing))
        move(parts, torch.device("cpu"))
        return found

    def _see(self, examples: Sequence[Example], sizes: Sequence[Size], load: Load) -> list[list[Path]]:
        """Sources as encoders beside those of texts see them: for each example, and its mirror image, the file."""
        pairs = self.family.pairs
        assert pairs is not None and pairs.see is not None
        key = [_SEEN_VERSION, type(self.pipe).__name__, [self._fingerprint(name, load) for name in pairs.eyes]]
        found: list[list[Path]] = []
        missing: dict[Path, list[Picture]] = {}
        for example, size in zip(examples, sizes, strict=True):
            found.append([])
            for mirrored in self._mirrorings:
                pictures = self._sources_of(example, size, mirrored)
                path = self.folder / f"seen-{digest([*key, [picture.path.name for picture in pictures]])}.safetensors"
                found[-1].append(path)
                if not path.exists():
                    missing[path] = pictures
        if missing:
            load()
        parts = [getattr(self.pipe, name) for name in pairs.eyes] if missing else []
        move(parts, self.device)
        for done, (path, pictures) in enumerate(missing.items(), start=1):
            conditions = pairs.see(self.pipe, [image_of(picture) for picture in pictures], self.device)
            write(path, {name: tensor[0] for name, tensor in conditions.items()})
            self.progress("sources", done, len(missing))
        move(parts, torch.device("cpu"))
        return found

    def _encode_captions(self, captions: Sequence[str], key: list[Any], load: Load) -> dict[str, Path]:
        paths = {
            caption: self.folder / f"text-{digest([*key, caption])}.safetensors"
            for caption in dict.fromkeys([*captions, ""])
        }
        missing = [caption for caption, path in paths.items() if not path.exists()]
        if missing:
            load()
        parts = [getattr(self.pipe, name) for name in self.family.text_components] if missing else []
        move(parts, self._text_device)
        size = 1 if self.family.encodes_alone else _BATCH
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            conditions = self.family.encode(self.pipe, chunk, self._text_device)
            for row, caption in enumerate(chunk):
                write(paths[caption], {name: tensor[row] for name, tensor in conditions.items()})
            self.progress("captions", start + len(chunk), len(missing))
        move(parts, torch.device("cpu"))
        return paths

    def _encode_pictures(
        self, examples: Sequence[Example], sizes: Sequence[Size], vae_fingerprint: str, load: Load
    ) -> tuple[list[list[Path]], list[list[list[Path]]]]:
        """Of each example the files of its picture, as it is and mirrored, and those of each of its sources."""
        own = self.family.latents
        # The autoencoder's own latents serve all families that scale them; the others' are their own.
        key = [_CACHE_VERSION, vae_fingerprint], [] if own is None else [f"{own.__module__}.{own.__qualname__}"]
        is_filled = self.family.pairs is not None and self.family.pairs.hole
        frames = self.family.pairs.frames if self.family.pairs is not None else None
        wanted: list[Picture] = []

        def add(example: Example, source: Source, size: Size, *, blank: bool = False) -> list[Path]:
            made = [self._picture(example, source, size, mirrored, key, blank=blank) for mirrored in self._mirrorings]
            wanted.extend(made)
            return [picture.path for picture in made]

        latents, sources = [], []
        for example, size in zip(examples, sizes, strict=True):
            latents.append(add(example, Source(example.image, example.digest, example.size, example.colours), size))
            if frames is not None:
                sources.append([self._given(example, size, frames, vae_fingerprint, wanted)])
                continue
            sources.append(
                [
                    add(example, source, self._source_size(example, source, size), blank=is_filled)
                    for source in example.sources
                ]
            )
        missing = list({picture.path: picture for picture in wanted if not picture.path.exists()}.values())
        if missing:
            load()
        vae = self.pipe.vae
        if missing:
            vae.to(self.device)
        done = 0
        for chunk in chunks(missing):
            pixels = torch.stack([pixels_of(picture) for picture in chunk]).to(self.device, vae.dtype)
            if frames is not None and chunk[0].given:  # clips go one at a time
                means = frames.latents(vae, list(pixels.unbind(2)), chunk[0].example.frames).float()
            else:
                means = self.family.encode_pictures(vae, pixels)
            for mean, picture in zip(means, chunk, strict=True):
                write(picture.path, {"mean": mean})
            done += len(chunk)
            self.progress("pictures", done, len(missing))
        if missing:
            vae.to("cpu")
        return latents, sources

    def _sources_of(self, example: Example, size: Size, mirrored: bool) -> list[Picture]:
        """The sources of an example as encoders beside the autoencoder see them."""
        return [
            self._picture(example, source, self._source_size(example, source, size), mirrored, [])
            for source in example.sources
        ]

    def _given(
        self, example: Example, size: Size, frames: GivenFrames, vae_fingerprint: str, wanted: list[Picture]
    ) -> list[Path]:
        """The files of what the denoiser is told of an example's given frames, as it is and mirrored."""
        function = frames.latents
        numbers = tuple(source.frame or 0 for source in example.sources)
        key = [_CACHE_VERSION, vae_fingerprint], [f"{function.__module__}.{function.__qualname__}", numbers]
        source = Source(example.image, example.digest, example.size, example.colours)
        made = [self._picture(example, source, size, mirrored, key) for mirrored in self._mirrorings]
        wanted.extend(replace(picture, given=numbers) for picture in made)
        return [picture.path for picture in made]

    def _picture(
        self, example: Example, source: Source, size: Size, mirrored: bool, key: Any, *, blank: bool = False
    ) -> "Picture":
        """A picture of an example, the one that is trained on or a source: they are cropped alike."""
        offset = crop_offset(example, center_crop=self.center_crop, seed=self.seed)
        is_whole = source.size[0] * size[1] == source.size[1] * size[0]
        side = size[0] if size[0] == size[1] else size
        depends_on = [source.digest, side, None if is_whole else offset, mirrored]
        # Only of these were there files with other colours, of before profiles were heeded.
        depends_on += ["sRGB"] if source.colours else []
        depends_on += [example.mask_digest] if blank else []
        if (part := example.part) is not None:
            depends_on += ["frames", part.start, part.frames, part.frame_rate]
        depends_on += [] if source.frame is None else ["frame", source.frame]
        before, after = key or ([], [])
        path = self.folder / f"latent-{digest([*before, *depends_on, *after])}.safetensors"
        given = () if source.frame is None else (source.frame,)
        return Picture(source.path, example, size, offset, mirrored, path, blank, given)

    def _masks(self, examples: Sequence[Example], sizes: Sequence[Size], scale: int | None) -> list[list[Path]]:
        offsets = [crop_offset(example, center_crop=self.center_crop, seed=self.seed) for example in examples]
        return mask_files(self.folder, examples, sizes, offsets, self._mirrorings, scale)

    @property
    def _text_device(self) -> torch.device:
        return self.text_device or self.device

    @property
    def _mirrorings(self) -> tuple[bool, ...]:
        return (False, True) if self.random_flip else (False,)
