"""The table of denoisers as a person reads it: docs/denoisers.md, and `fera denoisers`."""

import inspect
from dataclasses import dataclass

from fera.models.registry import Denoiser, known

# Pipelines of known classes that are not routed, or not as they should be, with the reason.
NOT_SUPPORTED: dict[str, str] = {
    "LTXConditionPipeline": "passes coordinates instead of the sizes of its latent: the call is an error",
    "HunyuanImageRefinerPipeline": "its latent has a fifth dimension: the call is an error",
    "MarigoldDepthPipeline": "and its relatives put the given picture's latent before the one that is drawn, which no "
    "call shows: the gate would follow the picture. Register the UNet anew, with a function that takes the last four "
    "channels",
}


@dataclass(frozen=True)
class Row:
    """What is said of one class.

    Args:
        name: of the class.
        latent: the argument that holds its latent, as Markdown code.
        layout: shape of that argument.
        left_out: more on what does not steer the gate; empty where the layout says it all.
        target_modules: layers that are adapted when a config names none.
        pipelines: that a test draws with.
    """

    name: str
    latent: str
    layout: str
    left_out: str
    target_modules: tuple[str, ...]
    pipelines: tuple[str, ...]


def rows() -> list[Row]:
    """A row for each class that fera knows, by name."""
    return [_row(name, entry) for name, entry in sorted(known().items())]


def to_markdown() -> str:
    """The reference page docs/denoisers.md."""
    reasons = [f"| `{name}` | {reason} |" for name, reason in sorted(NOT_SUPPORTED.items())]
    refused = "\n".join(["| pipeline | why |", "|---|---|", *reasons])
    return f"{_HEAD}\n\n{_table()}\n\n{_TAIL}\n\n{refused}\n"


def _row(name: str, entry: Denoiser) -> Row:
    # The layout functions say both: the first line what there is, the paragraph after it what is left out.
    view = getattr(entry.view, "func", entry.view)
    layout, *rest = (inspect.getdoc(view) or "").split("\n\n")
    left_out = rest[0] if rest and not rest[0].startswith(("Args:", "Raises:")) else ""
    latent = f"`{entry.latent}`" if entry.latent else "by a function"
    return Row(name, latent, _line(layout), _line(left_out), entry.target_modules, entry.pipelines)


def _line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def _table() -> str:
    lines = [
        "| class | latent | its layout, and what is left out of it | default `target_modules` | pipelines |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        targets, pipelines = (", ".join(f"`{name}`" for name in names) for names in (row.target_modules, row.pipelines))
        layout = ". ".join(part for part in (row.layout, row.left_out) if part)
        lines.append(f"| `{row.name}` | {row.latent} | {layout} | {targets} | {pipelines} |")
    return "\n".join(lines)


_HEAD = """\
# Denoisers

fera finds the latent in each call of a pipeline's denoiser: by position or by keyword, and without the conditions that
a pipeline appends to it, such as a mask or a reference picture. For each class of the table, a test draws with the
pipelines named in it (tiny models with random weights) and compares every step's indicator with that of the
scheduler's latent. `FeraConfig()` without `target_modules` adapts the layers in the table.

ControlNet and T2I-Adapter, image to image, inpainting, LCM and one-step schedulers, CPU offloading, attention slicing,
FreeU and callbacks need nothing from you: the denoiser is called as ever, and routes itself. Control nets are not
routed.

## A class of your own

A class that fera does not know is an error that names those it knows. `fera.register_denoiser` adds one:

```python
import fera
import torch
from fera import FeraConfig
from peft import get_peft_model
from torch import nn


class MyDenoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(4, 4)

    def forward(self, canvas, timestep):
        return self.to_q(canvas.movedim(1, -1)).movedim(-1, 1)


fera.register_denoiser(MyDenoiser, latent="canvas", target_modules=["to_q"])
model = get_peft_model(MyDenoiser(), FeraConfig())
with fera.trace(model) as steps:
    model(torch.randn(2, 4, 16, 16), timestep=0.5)
assert steps[0].gates.shape == (2, 3)
```

- `latent` is the name of the argument of `forward` that holds the latent, as (B, C, H, W), or (B, C, L) for one
  dimension. If it needs work (packed tokens, appended conditions), pass a function from the arguments of the call, by
  name, to that tensor: `latent=lambda call: call["canvas"][:, :4]`.
- `timestep` is the name of the argument that traces show; routing does not use it.
- Subclasses follow their class. Register before loading an adapter, in every process.

## Classes that work

This page is generated: `fera denoisers --markdown > docs/denoisers.md`."""


_TAIL = """\
Frames of a video count as channels: the indicator is the share of spatial energy over all frames, the same as for one
picture at this noise level, whatever moves and however long the video is. Averaging the frames would cancel motion and
noise, and the shares would depend on how many frames there are. Sound has one dimension: its bands lie along time. In
LTX-2 the video routes both.

## What does not work

A class that is not in the table is an error that says so. Known gaps among the pipelines of classes that are:"""
