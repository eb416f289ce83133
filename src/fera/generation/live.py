"""A drawing as it goes, in files that another program follows: what a picture looks like, and its gate, at each step.

`live/steps.jsonl` grows by a line a picture and step; the pictures that it names lie beside it. A preview is the clean
picture that the denoiser believes in at that step, decoded.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fera.data.tensors import to_image
from fera.errors import FeraError
from fera.format import LIVE_STEPS
from fera.method.routing import Routing
from fera.models.families import family_of
from fera.models.latents import LatentUnits
from fera.models.previews import channels_of
from fera.pipelines.adapters import trace
from fera.pipelines.recording import DenoisingStep, record_denoising
from fera.support.progress import Listener

# Longer side of a preview in pixels.
_SIDE = 320


class Live:
    """Writes what happens at each step of a drawing.

    Args:
        folder: for the files; made if missing, emptied of an earlier drawing.
        pipe: what draws.
        steps: denoising steps of a picture.
        listener: hears why there are no previews, where there are none.
    """

    def __init__(self, folder: Path, pipe: Any, steps: int, listener: Listener) -> None:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.jpg"):
            old.unlink()
        self._folder = folder
        self._pipe = pipe
        self._steps = steps
        self._listener = listener
        self._decode = _decoder(pipe)
        if self._decode is None:
            listener.say(f"no previews: fera cannot decode what a {type(pipe).__name__} has between its steps")
        (folder / LIVE_STEPS).write_text("", encoding="utf-8")

    @contextmanager
    def batch(self, row: str, first: int, prompts: Sequence[str]) -> Iterator[Callable[[int], None]]:
        """Follow one call of the pipeline.

        Args:
            row: what is drawn: "base" or "adapted".
            first: number of the first picture.
            prompts: one a picture.

        Yields:
            A function to call after each step, with the number of steps done.
        """
        last: list[DenoisingStep] = []

        def receive(step: DenoisingStep) -> None:
            last[:] = [step]

        def missed(error: FeraError) -> None:
            if self._decode is not None:
                self._listener.say(f"no previews: {error}")
            self._decode = None

        with ExitStack() as stack:
            if self._decode is not None:
                try:
                    stack.enter_context(record_denoising(self._pipe, receive, missed))
                except FeraError as error:  # of the scheduler
                    missed(error)
            routings: list[Routing] = []
            if row != "base":
                try:
                    routings = stack.enter_context(trace(self._pipe))
                except FeraError:  # plain adapters alone: no gates to show
                    pass
            seen = 0

            def after(done: int) -> None:
                nonlocal seen
                new, seen = routings[seen:], len(routings)
                self._write(row, first, prompts, done, last[0] if last else None, new)

            yield after

    def _write(
        self,
        row: str,
        first: int,
        prompts: Sequence[str],
        done: int,
        step: DenoisingStep | None,
        routings: Sequence[Routing],
    ) -> None:
        pictures = self._decode(step.clean) if step is not None and self._decode is not None else []
        lines = []
        for index, prompt in enumerate(prompts):
            line: dict[str, Any] = {"row": row, "picture": first + index, "prompt": prompt}
            line |= {"step": done, "steps": self._steps}
            if step is not None:
                line["timestep"] = round(step.timestep, 4)
            if index < len(pictures):
                line["preview"] = f"{first + index:03d}-{row}-{done:03d}.jpg"
                pictures[index].save(self._folder / line["preview"], quality=85)
            # Where guidance doubles the batch, its first half comes first; both have the same latents.
            line["gates"] = {one.adapter: _numbers(one.gates, index) for one in routings}
            line["bands"] = {one.adapter: _numbers(one.indicator, index) for one in routings}
            lines.append(json.dumps(line, ensure_ascii=False))
        with (self._folder / LIVE_STEPS).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))


def _numbers(rows: Tensor, index: int) -> list[float]:
    return [round(float(value), 4) for value in rows[index % len(rows)]]


def _decoder(pipe: Any) -> Callable[[Tensor], list[Image.Image]] | None:
    """How clean latents become small pictures; None where fera does not know it of a pipeline."""
    vae = getattr(pipe, "vae", None)
    try:
        family = family_of(pipe)
    except FeraError:
        return None
    is_known = family.preview is not None or (family.latents is None and family.video is None)
    if vae is None or not hasattr(vae, "decode") or not is_known or (channels := channels_of(vae)) is None:
        return None
    show = family.preview or functools.partial(_from_units, units=family.units_of(vae))

    def decode(clean: Tensor) -> list[Image.Image]:
        frames, odd = divmod(clean.shape[1], channels)
        if clean.ndim != 4 or odd or (frames != 1 and family.video is None):
            return []
        weights = next(vae.parameters())
        pictures = []
        for latent in clean.to(weights.device, weights.dtype):  # one at a time: decoding takes more memory than a step
            with torch.no_grad():
                decoded = show(vae, latent[None])[0]
            pictures.append(to_image(decoded.float().clamp(-1, 1).cpu()))
            pictures[-1].thumbnail((_SIDE, _SIDE))
        return pictures

    return decode


def _from_units(vae: Any, latents: Tensor, units: LatentUnits) -> Tensor:
    shift, scale = (torch.tensor(numbers).view(-1, 1, 1).to(latents) for numbers in (units.shift, units.scale))
    pictures: Tensor = vae.decode(latents / scale + shift, return_dict=False)[0]
    return pictures
