"""The tables of models as a person reads them: docs/models.md, and `fera models`."""

import inspect
from dataclasses import dataclass

from fera.models.families import FAMILIES, MODELS
from fera.models.registry import Denoiser, known
from fera.models.untried import UNTRIED

# Pipelines of known classes that are not routed, or not as they should be, with the reason.
NOT_SUPPORTED: dict[str, str] = {
    "LTXConditionPipeline": "passes coordinates instead of the sizes of its latent: the call is an error",
    "HunyuanImageRefinerPipeline": "its latent has a fifth dimension: the call is an error",
    "MarigoldDepthPipeline, MarigoldIntrinsicsPipeline, MarigoldNormalsPipeline": "put the given picture's "
    "latent before the one that is drawn, which no call shows: the gate would follow the picture. Register the UNet "
    "anew, with a function that takes the last four channels",
}

# Transformers and UNets of diffusers that are not routed, with the reason.
NOT_ROUTED: dict[str, str] = {
    "Cosmos3OmniTransformer": "packs tokens of text, video, sound and actions into one sequence without a batch",
    "MiniMaxH3Transformer3DModel": "packs tokens of text, video and sound into one sequence without a batch",
    "AudioLDM2UNet2DConditionModel": "draws spectrograms; not tried: its pipeline reads texts with five models",
    "SanaWMTransformer3DModel": "not tried: its pipeline asks for a camera's path",
    "SanaWMLTX2RefinerTransformer3DModel": "draws block after block from keys and values that it has kept",
    "Kandinsky6SRTransformer3DModel": "begins with the given video under noise: its latent and its condition are one",
    "UVit2DModel": "draws tokens, not a latent: there is no energy of frequencies",
    "RFD4ProteinaTransformer": "draws proteins",
    "UNet1DModel": "draws sound itself or the plans of robots, in pipelines that are deprecated or gone",
    "PriorTransformer, T5FilmDecoder, MiniMaxMusic3RVQDepthDecoder": "draw what another model reads: embeddings, "
    "spectrograms, codes",
    "Transformer2DModel, DualTransformer2DModel, DreamLiteTransformer2DModel": "parts of UNets, routed with those",
    "TransformerTemporalModel, MotionAdapter": "parts of UNets, routed with those",
}

# What is routed, but not as everything else is, with what differs.
LIMITED: dict[str, str] = {
    "Flux2KleinKVPipeline": "computes the keys and values of the reference in its first step and keeps them: they have "
    "the gate of that step, while all else has the gate of its own. `Flux2KleinPipeline` computes them in every step",
    "AnyFlowFARPipeline": "draws in chunks, and keeps the keys and values of those that it has drawn: they have the "
    "gate of the finished chunk",
    "CosmosTextToWorldPipeline, CosmosVideoToWorldPipeline": "Cosmos 1 tells log(sigma) / 4, as EDM does: routers that "
    "read the timestep refuse it. No test draws with it",
    "WanAnimate2ModularPipeline": "computes the keys and values of the driving video in a call before the first step: "
    "they have the gate of that video, while all else has the gate of its own",
    "GlmImagePipeline": "with given pictures, computes their keys and values in calls before the first step: they have "
    "the gates of those pictures, while all else has the gate of its own. From a text alone nothing is kept",
    "FasterCache, PyramidAttentionBroadcast, FirstBlockCache": "and other caches of diffusers: what a step takes over "
    "from an earlier one was computed under the earlier gate",
}


@dataclass(frozen=True)
class Row:
    """What is said of one class.

    Args:
        name: the name of the class.
        latent: the argument that holds its latent, as Markdown code.
        layout: shape of that argument.
        left_out: more on what does not steer the gate; empty where the layout says it all.
        target_modules: layers that are adapted when a config names none.
        pipelines: that a test draws with.
        trained: those of them that `fera train` trains.
    """

    name: str
    latent: str
    layout: str
    left_out: str
    target_modules: tuple[str, ...]
    pipelines: tuple[str, ...]
    trained: tuple[str, ...]


def rows() -> list[Row]:
    """A row for each class that fera knows, by name."""
    return [_row(name, entry) for name, entry in sorted(known().items())]


def to_markdown() -> str:
    """The reference page docs/models.md."""
    limited, refused = _reasons("what", LIMITED), _reasons("why", NOT_SUPPORTED)
    trained = _TRAINS.format(count=len(FAMILIES), all=sum(len(row.pipelines) for row in rows()))
    missing = _reasons("why", NOT_ROUTED, "class")
    parts = [_HEAD, trained, _pipelines(), _CLASSES, _table(), _TAIL]
    parts += [_LIMITED, limited, _MISSING, missing, _UNTRIED, _untried(), _REFUSED, refused]
    return "\n\n".join(parts) + "\n"


def _row(name: str, entry: Denoiser) -> Row:
    # The layout functions say both: the first line what there is, the paragraph after it what is left out.
    view = getattr(entry.view, "func", entry.view)
    layout, *rest = (inspect.getdoc(view) or "").split("\n\n")
    left_out = rest[0] if rest and not rest[0].startswith(("Args:", "Raises:")) else ""
    latent = f"`{entry.latent}`" if entry.latent else "by a function"
    trained = tuple(pipeline for pipeline in entry.pipelines if pipeline in FAMILIES)
    return Row(name, latent, _line(layout), _line(left_out), entry.target_modules, entry.pipelines, trained)


def _reasons(title: str, reasons: dict[str, str], of: str = "pipeline") -> str:
    lines = [f"| `{name.replace(', ', '`, `')}` | {reason} |" for name, reason in sorted(reasons.items())]
    return "\n".join([f"| {of} | {title} |", "|---|---|", *lines])


def _untried() -> str:
    lines = [f"| {reason} | {', '.join(f'`{name}`' for name in sorted(names))} |" for reason, names in UNTRIED.items()]
    return "\n".join(["| why | pipelines |", "|---|---|", *lines])


def _line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def _pipelines() -> str:
    """The pipelines that are proven: those that train first, by what people call their models."""
    found = [(pipeline, row.name, pipeline in row.trained) for row in rows() for pipeline in row.pipelines]
    found.sort(key=lambda each: (not each[2], MODELS.get(each[0], "").lower(), each[0]))
    lines = [
        f"| {MODELS.get(pipeline, '')} | `{pipeline}` | `{denoiser}` | {'yes' if trained else ''} | yes |"
        for pipeline, denoiser, trained in found
    ]
    head = ["| model | pipeline | denoiser | trained | drawn |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines])


def _table() -> str:
    lines = [
        "| class | latent | its layout, and what is left out of it | default `target_modules` |",
        "|---|---|---|---|",
    ]
    for row in rows():
        targets = ", ".join(f"`{name}`" for name in row.target_modules)
        layout = ". ".join(part for part in (row.layout, row.left_out) if part)
        lines.append(f"| `{row.name}` | {row.latent} | {layout} | {targets} |")
    return "\n".join(lines)


_HEAD = """\
# Models

This page is generated: `fera models --markdown > docs/models.md`. `fera models` lists the same, and `fera models NAME`
the layers of one denoiser: of a class, or of a base as its configuration describes it.

fera finds the latent in each call of a pipeline's denoiser: by position or by keyword, and without the conditions that
a pipeline appends to it, such as a mask or a reference picture. For each class, a test draws with the pipelines named
here (tiny models with random weights) and compares every step's indicator with that of the scheduler's latent.

ControlNet and T2I-Adapter, image to image, inpainting, LCM and one-step schedulers, CPU offloading, attention slicing,
FreeU, perturbed-attention guidance, FasterCache and callbacks need nothing from you: the denoiser is called as ever,
and routes itself. Control nets are not routed.

Each sample of a call has its own gate. A layer whose rows are not samples, such as one that sees the tokens of all
captions in one axis, gets the gate of each row's sample; where that cannot be told (HiDream's experts, ERNIE-Image's
`mlp`) it works as long as all samples of a call have one gate, as with one latent a call, and is an error otherwise.

A router that reads the timestep (`router_input`) refuses schedulers that give log(sigma) / 4 in its place: EDM's, and
Euler's with `timestep_type="continuous"`. Pure noise would look clean to it. Routers that read the latent alone work
with any scheduler.

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
- `timestep` is the name of the argument that traces show, and that routers read whose `router_input` has the timestep;
  `timestep_range` says what a clean latent and pure noise have there.
- Rows of a layer's input must be samples. Frames and other axes folded into the batch follow their sample; a layer that
  sees (rows, features) with other rows than samples is an error where the samples' gates differ.
- Subclasses follow their class. Register before loading an adapter, in every process."""


_TAIL = """\
Frames of a video count as channels: the indicator is the share of spatial energy over all frames, the same as for one
picture at this noise level, whatever moves and however long the video is. Averaging the frames would cancel motion and
noise, and the shares would depend on how many frames there are. Sound has one dimension: its bands lie along time. In
LTX-2 the video routes both."""


_TRAINS = """\
## Pipelines

Of {all} pipelines that are drawn with, `fera train` trains {count} ([training.md](training.md#bases) says what to know
of each, and how each is proven). Every other denoiser trains in a loop of your own."""


_CLASSES = """\
## Classes

`FeraConfig()` without `target_modules` adapts the layers in the last column; [layers.md](layers.md)
says how to choose others."""


_LIMITED = "## What works with a limit"


_REFUSED = """\
## What does not work

A class that is not in the table is an error that says so. Known gaps among the pipelines of classes that are:"""


_MISSING = """\
## Classes that are not routed

Of the transformers and UNets of diffusers 0.42:"""


_UNTRIED = """\
## What no test draws with

Other pipelines of diffusers 0.42 whose denoiser is of a class above. They route as far as their calls are those of a
pipeline that is proven; no test says so."""
