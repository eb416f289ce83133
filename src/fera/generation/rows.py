"""Rows of a drawing: all prompts drawn once, by the base or by the adapters, and the files that they go to."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fera.data.sounds.spectrogram import spectrogram
from fera.format import LIVE
from fera.generation.clips import contact_sheet, save_clip
from fera.generation.live import Live
from fera.generation.request import Drawing
from fera.generation.sampling import file_stem, generate_clips, generate_sounds, save_image
from fera.generation.sounds import save_sound
from fera.generation.steering import AdapterUse
from fera.models.families import sound_of, video_of
from fera.support.files import claim_folder
from fera.support.progress import Listener
from fera.version import __version__

# Of clips of bases that do not say theirs.
_FRAME_RATE = 16.0


@dataclass(frozen=True)
class Given:
    """What the prompts of a drawing are given.

    Args:
        sources: source pictures of each prompt; empty where the base needs none.
        masks: one a prompt; likewise.
    """

    sources: list[list[Image.Image]]
    masks: list[Image.Image]


class DrawnFiles:
    """The files of a drawing."""

    def __init__(self, drawing: Drawing) -> None:
        stems = [file_stem(index, prompt) for index, prompt in enumerate(drawing.prompts)]
        self._drawing = drawing
        folder = drawing.output
        self.grid = folder / "grid.png"
        self.images = [folder / f"{stem}.png" for stem in stems]
        self.base_images = [folder / f"{stem}-base.png" for stem in stems] if drawing.compare_base else []
        self.plot, self.table = folder / "gates.png", folder / "gates.csv"
        self.record = folder / "generation.json"
        self.live = folder / LIVE
        traced = [self.plot, self.table] if drawing.trace else []
        self.all = [self.grid, *traced, *self.images, *self.base_images, self.record]
        self.beside: list[Path] = []

    def claim(self) -> None:
        """Make the folder, or refuse where files would be replaced unasked."""
        clips = [path.with_suffix(kind) for path in (*self.images, *self.base_images) for kind in (".mp4", ".wav")]
        live = [self.live] if self._drawing.live else []
        held = [path.name for path in (*self.all, *clips, *live) if path.exists()]
        claim_folder(self._drawing.output, held, overwrite=self._drawing.overwrite)


@dataclass(frozen=True)
class Row:
    """Draws all prompts once."""

    pipe: Any
    drawing: Drawing
    given: Given
    files: DrawnFiles
    live: Live | None
    listener: Listener

    def draw(
        self, label: str, paths: Sequence[Path], details: Mapping[str, object], uses: Mapping[str, AdapterUse]
    ) -> list[Image.Image]:
        """Draw, saving each batch when it is done; of clips, contact sheets are given, of sounds spectrograms."""
        if sound_of(self.pipe) is not None:
            return self._draw_sounds(label, paths, details, uses)
        drawing, given = self.drawing, self.given
        count, video = len(drawing.prompts), video_of(self.pipe)
        size = drawing.batch_size if video is None or drawing.num_frames == 1 else 1
        rate = drawing.frame_rate or (_FRAME_RATE if video is None else video.frame_rate)
        images: list[Image.Image] = []
        for start in range(0, count, size):
            prompts = drawing.prompts[start : start + size]
            following = self.live.batch("adapted" if uses else "base", start, prompts) if self.live else None
            with following or nullcontext() as after:
                clips = generate_clips(
                    self.pipe,
                    prompts,
                    num_frames=drawing.num_frames,
                    negative_prompt=drawing.negative_prompt,
                    seed=drawing.seed + start,
                    num_inference_steps=drawing.steps,
                    guidance_scale=drawing.guidance_scale,
                    adapter_start=drawing.adapter_start,
                    weights={name: use.weights for name, use in uses.items()},
                    height=drawing.height,
                    width=drawing.width,
                    batch_size=size,
                    sources=given.sources[start : start + size],
                    masks=given.masks[start : start + size],
                    progress=self._teller(label, start, len(prompts), after),
                )
            for index, frames in enumerate(clips, start=start):
                about = self._about(index, details, uses)
                if len(frames) > 1:
                    self.files.beside.append(paths[index].with_suffix(".mp4"))
                    save_clip(frames, self.files.beside[-1], rate, about)
                images.append(contact_sheet(frames))
                save_image(images[-1], paths[index], about)
        self.listener.advance(f"drawing {label}", count * drawing.steps, count * drawing.steps)
        return images

    def _draw_sounds(
        self, label: str, paths: Sequence[Path], details: Mapping[str, object], uses: Mapping[str, AdapterUse]
    ) -> list[Image.Image]:
        drawing = self.drawing
        images: list[Image.Image] = []
        for index, prompt in enumerate(drawing.prompts):
            following = self.live.batch("adapted" if uses else "base", index, [prompt]) if self.live else None
            with following or nullcontext() as after:
                (sound,) = generate_sounds(
                    self.pipe,
                    [prompt],
                    seconds=drawing.seconds,
                    negative_prompt=drawing.negative_prompt,
                    seed=drawing.seed + index,
                    num_inference_steps=drawing.steps,
                    guidance_scale=drawing.guidance_scale,
                    adapter_start=drawing.adapter_start,
                    weights={name: use.weights for name, use in uses.items()},
                    progress=self._teller(label, index, 1, after),
                )
            about = self._about(index, details, uses)
            self.files.beside.append(paths[index].with_suffix(".wav"))
            save_sound(sound, self.files.beside[-1], about)
            images.append(spectrogram(sound))
            save_image(images[-1], paths[index], about)
        self.listener.advance(f"drawing {label}", len(images) * drawing.steps, len(images) * drawing.steps)
        return images

    def _teller(
        self, label: str, start: int, batch: int, after: Callable[[int], None] | None
    ) -> Callable[[int, int], None]:
        steps, total = self.drawing.steps, len(self.drawing.prompts) * self.drawing.steps

        def tell(done: int, _total: int) -> None:
            self.listener.advance(f"drawing {label}", start * steps + done, total)
            if after is not None:
                after(done // batch)

        return tell

    def _about(self, index: int, details: Mapping[str, object], uses: Mapping[str, AdapterUse]) -> dict[str, object]:
        """What is written into a picture: in words, and as JSON that draws it again."""
        drawing = self.drawing
        about = {"prompt": drawing.prompts[index], "seed": drawing.seed + index} | sampling_of(drawing) | dict(details)
        settings = {
            "prompt": drawing.prompts[index],
            "seed": drawing.seed + index,
            "base": details["base"],
            "adapters": [use.to_dict() for use in uses.values()],
            **sampling_of(drawing),
            **size_of(drawing),
            **given_of(drawing, index),
        }
        return about | {"settings": json.dumps(settings, ensure_ascii=False)}


def sampling_of(drawing: Drawing) -> dict[str, object]:
    """How prompts are drawn, as pictures and the record say it."""
    return {
        "negative_prompt": drawing.negative_prompt,
        "steps": drawing.steps,
        "guidance_scale": drawing.guidance_scale,
        "adapter_start": drawing.adapter_start,
    }


def size_of(drawing: Drawing) -> dict[str, object]:
    """How large pictures and clips are, and how long sounds, likewise."""
    return {
        "height": drawing.height,
        "width": drawing.width,
        "num_frames": drawing.num_frames,
        "frame_rate": drawing.frame_rate,
        "seconds": drawing.seconds,
        "precision": drawing.precision,
    }


def given_of(drawing: Drawing, index: int) -> dict[str, str]:
    """The paths that a prompt was given."""
    entries = {"source": drawing.sources, "mask": drawing.masks}
    return {name: given[index if len(given) > 1 else 0] for name, given in entries.items() if given}


def record_of(drawing: Drawing, base: str, names: Sequence[str], uses: Sequence[AdapterUse], files: DrawnFiles) -> str:
    """The text of `generation.json`."""
    adapters = [
        {
            "name": name,
            **use.to_dict(),
            "weight": use.weights[0] if len(use.weights) == 1 else list(use.weights),
        }
        for name, use in zip(names, uses, strict=True)
    ]
    images = [
        {"prompt": prompt, "seed": drawing.seed + index, "file": path.name, **given_of(drawing, index)}
        for index, (prompt, path) in enumerate(zip(drawing.prompts, files.images, strict=True))
    ]
    settings = sampling_of(drawing) | size_of(drawing)
    record = {"fera": __version__, "base": base, "adapters": adapters, **settings, "images": images}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
