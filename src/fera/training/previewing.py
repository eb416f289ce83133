"""The pictures of a run's validation prompts, drawn as `fera generate` draws them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from fera.config import TrainConfig
from fera.data.buckets import Size, bucket_sizes, nearest_bucket
from fera.data.sounds.sound import Waveform
from fera.generation.sources import in_turn, read_masks, read_sources
from fera.models.families import Family

# What comes of one prompt: frames, or a sound.
Drawn = list[Image.Image] | Waveform

# Pictures that are drawn together.
_BATCH = 8


@dataclass(frozen=True)
class Previews:
    """Validation prompts, and how they are drawn.

    Args:
        config: the configuration of the run: prompts, sources, seed, steps, guidance.
        family: of the pipeline.
        resolution: side of the square training size in pixels.
        bucket_step: in pixels between the sides of buckets; None where they are off.
        given: entries of sources that prompts are given in turn where the configuration names none.
    """

    config: TrainConfig
    family: Family
    resolution: int
    bucket_step: int | None
    given: Sequence[str] = ()

    @property
    def entries(self) -> list[str]:
        """The sources of prompts, as `fera generate` is told of them; empty where the base needs none."""
        settings = self.config.validation
        return list(settings.sources) or in_turn(self.given, len(settings.prompts))

    def sources(self) -> list[list[Image.Image]]:
        """Source pictures of each prompt; empty where the base needs none."""
        return read_sources(self.entries, len(self.config.validation.prompts))

    def calls(self) -> list[Callable[[Any], list[Drawn]]]:
        """Calls of the pipeline that draw a few prompts each: the pipeline to frames of each, one of a picture.

        Of a base of sound, to a sound each.
        """
        settings = self.config.validation
        if self.family.sound is not None:
            return [partial(self._draw_sound, number) for number in range(len(settings.prompts))]
        masks, sources = read_masks(settings.masks, len(settings.prompts)), self.sources()
        return [
            partial(self._draw, slice(first, first + count), size, sources, masks)
            for first, count, size in self._together(sources)
        ]

    def _draw(
        self,
        chosen: slice,
        size: Size,
        sources: Sequence[Sequence[Image.Image]],
        masks: Sequence[Image.Image],
        pipe: Any,
    ) -> list[Drawn]:
        from fera.generation import generate_clips

        settings, frames = self.config.validation, self.config.drawn_frames
        clips = generate_clips(
            pipe,
            settings.prompts[chosen],
            num_frames=frames if self.family.video is not None else None,
            batch_size=_BATCH if frames == 1 else 1,
            negative_prompt=settings.negative_prompt,
            seed=settings.seed + chosen.start,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=size[1],
            width=size[0],
            sources=sources[chosen],
            masks=masks[chosen],
        )
        return list(clips)

    def _draw_sound(self, number: int, pipe: Any) -> list[Drawn]:
        from fera.generation import generate_sounds

        settings = self.config.validation
        return list(
            generate_sounds(
                pipe,
                [settings.prompts[number]],
                seconds=self.config.drawn_seconds,
                negative_prompt=settings.negative_prompt,
                seed=settings.seed + number,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
            )
        )

    def _together(self, sources: Sequence[Sequence[Image.Image]]) -> Iterator[tuple[int, int, Size]]:
        """Runs of prompts that are drawn in one call of the pipeline: the first, how many, and at which size.

        Without sources all are drawn as squares; with some, each at the size at which its first source would be
        trained.
        """
        side, total = self.resolution, len(self.config.validation.prompts)
        if not sources:
            most = _BATCH if self.config.drawn_frames == 1 else 1
            for first in range(0, total, most):
                yield first, min(most, total - first), (side, side)
            return
        buckets = [(side, side)] if self.bucket_step is None else bucket_sizes(side, self.bucket_step)
        for number, pictures in enumerate(sources):
            yield number, 1, nearest_bucket(pictures[0].size, buckets)
