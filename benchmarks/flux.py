"""FLUX.1 at full size by the real command line: a base that is larger than the memory takes its first step.

    python -m benchmarks.flux FOLDER

makes a base in FOLDER once and trains one step from a picture with each of the ways below. The
base takes 33 GB: the transformer of 12 billion weights and T5-XXL in bf16, CLIP and the autoencoder, all random, made a
shard at a time; `--small` makes a tiny one. Each way is a process of its own. Its line says the most memory that it
had, pages of mapped files among it, and its time. Nothing is in a cache: the caption and the picture are encoded too.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from benchmarks.full_models import flux_of
from benchmarks.peaks import run_fera
from fera.pipelines.base import EMOJI, load_base

_SHARD = 2**31  # bytes
_WORDS = ["a picture of noise"]
WAYS = {
    "blocks wait on the disk": {"train.offload": "disk"},
    "4 bits (NF4)": {"quantization": "4bit"},
}


@dataclass(frozen=True)
class Outcome:
    """What a run took.

    Args:
        resident: the most memory of the process at a time, in bytes.
        seconds: of the whole run.
    """

    resident: float
    seconds: float


def make_base(folder: Path, *, small: bool) -> None:
    """Write a base of random weights, a shard at a time; nothing is done where there is one.

    Args:
        folder: of the pipeline.
        small: whether each part is a tiny one.
    """
    if (folder / "model_index.json").exists():
        return
    few = {"num_hidden_layers": 1, "intermediate_size": 64} if small else {}
    tokenizer = load_base(EMOJI).tokenizer
    torch.manual_seed(0)
    clip = CLIPTextModel(
        CLIPTextConfig(**{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, **few})
    )
    channels = (32, 32, 64, 64) if small else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    t5 = {"d_model": 4096, "d_kv": 64, "d_ff": 64 if small else 10240, "num_heads": 64}
    with init_empty_weights():
        transformer = flux_of(small)
        xxl = T5EncoderModel(
            T5Config(**t5, num_layers=1 if small else 24, feed_forward_proj="gated-gelu", vocab_size=32128)
        )
    _save_random(transformer, folder / "transformer", "diffusion_pytorch_model")
    _save_random(xxl, folder / "text_encoder_2", "model")
    clip.bfloat16().save_pretrained(folder / "text_encoder")
    vae.bfloat16().save_pretrained(folder / "vae")
    tokenizer.save_pretrained(folder / "tokenizer")
    T5Tokenizer().train_new_from_iterator(_WORDS, 60, show_progress=False).save_pretrained(folder / "tokenizer_2")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    parts = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "T5Tokenizer"),
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    index = {"_class_name": "FluxPipeline", "_diffusers_version": diffusers.__version__} | parts
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _save_random(model: nn.Module, folder: Path, name: str) -> None:
    """Write an empty model's configuration, and random weights for it, a shard at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder) if hasattr(model.config, "save_pretrained") else model.save_config(folder)
    shards = list(_shards(model))
    places: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: _random(key, shape) for key, shape in shapes.items()}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shapes, file)
    total = sum(weight.numel() for weight in model.parameters()) * 2
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(model: nn.Module) -> Iterator[dict[str, torch.Size]]:
    shard: dict[str, torch.Size] = {}
    held = 0
    for name, weight in model.named_parameters():  # tied weights once
        if shard and held + weight.numel() * 2 > _SHARD:
            yield shard
            shard, held = {}, 0
        shard[name], held = weight.shape, held + weight.numel() * 2
    yield shard


def _random(name: str, shape: torch.Size) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape).bfloat16() if name.endswith("bias") else torch.ones(shape).bfloat16()
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)


def train(base: Path, folder: Path, settings: dict[str, str], side: int) -> Outcome:
    """One step of `fera train` as a process.

    Args:
        base: folder of the pipeline.
        folder: for the picture, the cache and the run; new.
        settings: settings of the run besides.
        side: of the picture, in pixels.

    Raises:
        SystemExit: the run fails, with what it printed.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    Image.effect_noise((side, side), 60).convert("RGB").save(pictures / "0.png")
    (pictures / "0.txt").write_text(_WORDS[0], encoding="utf-8")
    settings = {
        "base": str(base),
        "output_dir": str(folder / "run"),
        "data.train_data_dir": str(pictures),
        "data.resolution": str(side),
        "train.steps": "1",
        "train.batch_size": "1",
        "train.mixed_precision": "bf16",
        "train.gradient_checkpointing": "true",
        "train.report_to": "none",
    } | settings
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    kept = {"HF_HUB_OFFLINE": "1", "FERA_CACHE": str(folder / "known")}
    began = time.perf_counter()
    resident = run_fera(["train", *flags], kept)
    return Outcome(resident, time.perf_counter() - began)


def main(argv: list[str] | None = None) -> None:
    """Make the base and train each way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flux", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the base, which is kept, and the runs")
    parser.add_argument("--only", choices=list(WAYS), help="one way alone")
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels (%(default)s)")
    parser.add_argument("--small", action="store_true", help="a tiny base")
    arguments = parser.parse_args(argv)
    base = arguments.folder / ("small" if arguments.small else "base")
    make_base(base, small=arguments.small)
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}")
    side = arguments.side
    print(f"| FLUX.1, one step, {side} x {side} pixels | the most in memory | the whole run |\n| --- | --- | --- |")
    for number, (way, settings) in enumerate(WAYS.items()):
        if arguments.only in (None, way):
            folder = arguments.folder / f"{way.split()[0]}-{time.time_ns()}-{number}"
            outcome = train(base, folder, settings, side)
            print(f"| {way} | {outcome.resident / 1e9:.1f} GB | {outcome.seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
