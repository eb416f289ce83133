"""What it would cost a diffusion base to be held as its principal subspaces: loss and memory by spectral energy kept.

Principal subspaces (CERSA, arXiv 2605.08174) keep of each weight the leading singular directions that hold a share of
its energy, the sum of squared singular values, and drop the rest. Here the emoji base's UNet is held so, its linear
layers and its convolutions (a kernel as a matrix (out, in h w)), and its denoising loss is measured, without any
training: on pictures that the base draws itself, and on those of another style. As factors a layer is held where they
have fewer numbers than the weight; elsewhere the weight stays whole (`fera.compress`).

    python -m benchmarks.compression
"""

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from fera.config import DataConfig
from fera.data.cache.encoded import EncodedSet
from fera.data.checking import check_images
from fera.data.sources import find_examples
from fera.demo import base_path, unpack_style
from fera.evaluation import EvaluationSettings
from fera.evaluation.denoising import denoising_samples, encode_folder, mean_losses
from fera.generation import generate
from fera.models.components import denoisers
from fera.pipelines.base import load_base
from fera.pipelines.compression import Compression, compress

ENERGIES = (0.9, 0.95, 0.99, 0.999)
STYLE = "twemoji"
_SAMPLES = 228  # four of each of the 57 test names


@dataclass(frozen=True)
class Row:
    """The base with a share of its weights' energy.

    Args:
        energy: the share; 1 for the base as it is.
        factored: layers held as factors.
        layers: of how many.
        stored: numbers held, over those of the whole UNet.
        bytes: of the UNet's weights in memory.
        own_loss: on the base's own drawings.
        style_loss: on the test pictures of another style.
    """

    energy: float
    factored: int
    layers: int
    stored: float
    bytes: int
    own_loss: float
    style_loss: float


def memory_of(unet: nn.Module) -> int:
    """Bytes that weights and buffers take, each storage once."""
    tensors = [*unet.parameters(), *unet.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(pipe: StableDiffusionPipeline, data: EncodedSet) -> float:
    """Mean denoising loss."""
    settings = EvaluationSettings(loss_samples=_SAMPLES, batch_size=16)
    return mean_losses(denoising_samples(pipe, data, settings, lambda *told: None))[0]


def _encoded(pipe: StableDiffusionPipeline, folder: Path, cache: Path) -> EncodedSet:
    examples, _ = check_images(find_examples(folder, DataConfig(train_data_dir=folder)), skip_bad=False)
    return encode_folder(pipe, examples, (64, 64), cache, torch.device("cpu"), lambda *told: None)


def _drawn(pipe: StableDiffusionPipeline, like: Path, folder: Path) -> Path:
    """The base's own pictures of a folder's captions."""
    folder.mkdir()
    captions = [example.caption for example in find_examples(like, DataConfig(train_data_dir=like))]
    images = generate(pipe, captions, seed=0, num_inference_steps=24, guidance_scale=3.0, batch_size=16)
    for number, (caption, image) in enumerate(zip(captions, images, strict=True)):
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def rows(energies: Sequence[float]) -> list[Row]:
    """The base with these shares of its weights' energy."""
    pipe = load_base(str(base_path()))
    name, whole = next(iter(denoisers(pipe).items()))
    found = []
    with TemporaryDirectory() as folder:
        style = unpack_style(STYLE, folder) / "test"
        data = [
            _encoded(pipe, place, Path(folder, "cache")) for place in (_drawn(pipe, style, Path(folder, "own")), style)
        ]
        for energy in energies:
            unet = copy.deepcopy(whole)
            layers = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in unet.modules())
            made = Compression(0, layers, 1, 1) if energy == 1 else compress(unet, energy)
            setattr(pipe, name, unet)
            losses = [measure(pipe, one) for one in data]
            found.append(Row(energy, made.factored, made.layers, made.after / made.before, memory_of(unet), *losses))
    return found


def main() -> None:
    """Measure, and leave the rows among those that were measured before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--energies", type=float, nargs="+", default=[1.0, *reversed(ENERGIES)], help="shares to keep; 1 for all"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("docs/results/compression.json"), help="the rows (%(default)s)"
    )
    options = parser.parse_args()
    table = {row["energy"]: row for row in (json.loads(options.json.read_text()) if options.json.exists() else [])}
    table |= {row.energy: asdict(row) for row in rows(options.energies)}
    ordered = [table[energy] for energy in sorted(table, reverse=True)]
    options.json.write_text(json.dumps(ordered, indent=1) + "\n")
    print("| energy kept | layers held as factors | memory | loss on its own drawings | loss on another style |")
    print("|---|---|---|---|---|")
    for row in ordered:
        memory = f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else "–"
        print(
            f"| {row['energy']:g} | {row['factored']} of {row['layers']} | {memory} | {row['own_loss']:.4f} | "
            f"{row['style_loss']:.4f} |"
        )


if __name__ == "__main__":
    main()
