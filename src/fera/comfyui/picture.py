"""A trace as a picture, drawn with Pillow alone: what ComfyUI has."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fera.method.routing import Routing

# Okabe and Ito's, which people tell apart whatever colours they see.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_WIDTH, _HEIGHT = 1200, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 130, 48, 44


def draw(trace: Sequence[Routing]) -> Tensor:
    """Gates and shares of energy along the steps, a row an adapter; the mean over samples.

    Args:
        trace: at least one entry.

    Returns:
        Shape (1, H, 1200, 3), 0 to 1, as ComfyUI has pictures.
    """
    adapters = list(dict.fromkeys(routing.adapter for routing in trace))
    picture = Image.new("RGB", (_WIDTH, _HEIGHT * len(adapters)), "white")
    pen = ImageDraw.Draw(picture)
    for row, adapter in enumerate(adapters):
        steps = [routing for routing in trace if routing.adapter == adapter]
        shares = torch.stack([step.indicator.mean(dim=0) for step in steps])
        gates = torch.stack([step.gates.mean(dim=0) for step in steps])
        top = row * _HEIGHT
        _plot(pen, 0, top, f"{adapter}: shares of energy", shares, [f"band {k + 1}" for k in range(shares.shape[1])])
        names = [f"expert {e + 1}" for e in range(gates.shape[1])]
        _plot(pen, _WIDTH // 2, top, f"{adapter}: gate", gates, names)
    pixels = torch.from_numpy(np.asarray(picture).copy())
    return (pixels.float() / 255)[None]


def _plot(pen: ImageDraw.ImageDraw, left: int, top: int, title: str, values: Tensor, names: Sequence[str]) -> None:
    small, large = ImageFont.load_default(15), ImageFont.load_default(19)
    x0, x1 = left + _LEFT, left + _WIDTH // 2 - _RIGHT
    y0, y1 = top + _TOP, top + _HEIGHT - _BOTTOM
    highest = max(1.0, float(values.max()))
    lowest = min(0.0, float(values.min()))
    pen.text((x0, top + 14), title, fill="black", font=large)
    for part in range(5):
        level = lowest + (highest - lowest) * part / 4
        y = y1 - (y1 - y0) * part / 4
        pen.line([(x0, y), (x1, y)], fill="#dddddd")
        pen.text((x0 - 8, y), f"{level:.2f}", fill="#555555", font=small, anchor="rm")
    count = len(values)
    for index, name in enumerate(names):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [
            (x0 + (x1 - x0) * (step / max(1, count - 1)), y1 - (y1 - y0) * (float(value) - lowest) / (highest - lowest))
            for step, value in enumerate(values[:, index])
        ]
        pen.line(points, fill=colour, width=3)
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        pen.text((x1 + 14, y0 + 22 * index), name, fill=colour, font=small)
    pen.text(((x0 + x1) / 2, y1 + 22), f"calls of the model, 1 to {count}", fill="#555555", font=small, anchor="mm")
