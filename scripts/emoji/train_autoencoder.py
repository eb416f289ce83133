"""Train the emoji autoencoder from scratch: diffusers' `AutoencoderKL`, 64x64 pixels to 16x16x4 latents.

Resumable: the same command continues from the last checkpoint. `--minutes` is the total training time over
all starts, and the learning rate reaches its end exactly then, on a CPU or a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import sets
import torch
from diffusers import AutoencoderKL
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor
from torch.nn import functional

SCALE_FACTOR = 4  # pixels a latent pixel, each way


def build_model(channels: tuple[int, ...]) -> AutoencoderKL:
    """Make the untrained autoencoder; its first level is narrow, since most of the work is there."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=sets.SIZE,
        mid_block_add_attention=False,
    )


def load_images(work: Path) -> tuple[Tensor, Tensor]:
    """Load all pictures whose licence asks for nothing but credit.

    Args:
        work: the work folder.

    Returns:
        Training and held-out pictures, each of shape (N, 3, 64, 64), uint8; held out are the test concepts.
    """
    pictures, held_out = [], []
    for entry in sets.PERMISSIVE:
        names, images = sets.load(entry, work)
        is_test = np.array([sets.split_of(name) == "test" for name in names])
        pictures.append(images[~is_test])
        held_out.append(images[is_test])
    return tuple(
        torch.from_numpy(np.concatenate(part)).permute(0, 3, 1, 2).contiguous() for part in (pictures, held_out)
    )  # type: ignore[return-value]


def to_model(pictures: Tensor, device: torch.device) -> Tensor:
    """Map uint8 pictures to [-1, 1]."""
    pixels = pictures.to(device).float().div_(127.5).sub_(1)
    return pixels.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Pixel error plus the error of finite differences, which is what keeps edges sharp."""
    difference = output - target
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 0.5 * difference.square().mean() + 0.5 * edges


def learning_rate(done: float, peak: float) -> float:
    """Cosine decay to zero after a short warm-up.

    Args:
        done: share of the planned time that is over, 0 to 1.
        peak: the highest rate.

    Returns:
        The rate of this step.
    """
    warm_up = min(1.0, done / 0.02 + 0.05)
    return peak * warm_up * 0.5 * (1 + float(np.cos(np.pi * min(done, 1.0))))


@torch.no_grad()
def mean_squared_error(model: AutoencoderKL, pictures: Tensor, device: torch.device) -> float:
    """Reconstruction error on [-1, 1], through the latent's mean."""
    errors = []
    for batch in pictures.split(64):
        target = to_model(batch, device)
        output = model.decode(model.encode(target).latent_dist.mean).sample
        errors.append(functional.mse_loss(output, target, reduction="none").mean((1, 2, 3)))
    return torch.cat(errors).mean().item()


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint such that an interruption leaves the old one or the new one, never half of one."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.replace(path)


def train(args: argparse.Namespace) -> AutoencoderKL:
    """Train until the planned time is over and return the model."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    pictures, held_out = load_images(args.work)
    held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:256]]
    model = build_model(tuple(args.channels)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=1e-3, fused=True)
    checkpoint = args.work / "autoencoder.pt"
    seconds, step = 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        seconds, step = state["seconds"], state["step"]
        torch.manual_seed(step)

    total = args.minutes * 60
    last = last_save = time.monotonic()
    average = 0.0
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("autoencoder", total=total, completed=seconds)
        while seconds < total:
            rate = learning_rate(seconds / total, args.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            target = to_model(pictures[torch.randint(len(pictures), (args.batch_size,))], device)
            # Mirrored pictures are free extra data.
            target = torch.where(torch.rand(len(target), 1, 1, 1, device=device) < 0.5, target.flip(-1), target)
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
            loss = reconstruction_loss(output, target) + args.kl * posterior.kl().mean() / posterior.mean[0].numel()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            average += (loss.item() - average) / min(step, 100)
            now = time.monotonic()
            seconds, last = seconds + now - last, now
            progress.update(bar, completed=seconds, description=f"autoencoder step {step} loss {average:.4f}")
            if now - last_save > args.save_every or seconds >= total:
                model.eval()
                error = mean_squared_error(model, held_out, device)
                model.train()
                progress.print(f"step {step}, {seconds:.0f} s, loss {average:.4f}, held-out MSE {error:.5f}")
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_atomically({**state, "seconds": seconds, "step": step}, checkpoint)
                last_save = time.monotonic()
    return model.eval()


@torch.no_grad()
def fold_normalization(model: AutoencoderKL, pictures: Tensor, device: torch.device) -> None:
    """Make latents have mean 0 and deviation 1 in each channel, inside the autoencoder itself.

    Taking the mean off and dividing by the deviation is affine in each channel, as are the encoder's last and
    the decoder's first convolution. With the one folded into the others, stock code that knows only
    `scaling_factor` (here 1) sees unit latents.
    """
    latents = torch.cat([model.encode(to_model(batch, device)).latent_dist.mean for batch in pictures.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    before, after = model.quant_conv, model.post_quant_conv
    # The last convolution of the encoder gives the posterior's mean, then its log variance.
    before.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()
    after.bias += after.weight.flatten(1) @ mean
    after.weight *= deviation.view(1, -1, 1, 1)
    model.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def silence_unused_channels(model: AutoencoderKL, pictures: Tensor, device: torch.device) -> list[int]:
    """Encode latent channels that the decoder ignores as zero.

    The KL divergence can push a channel out of use. Normalized, what is left in it would be a noise of deviation 1
    that a denoiser has to learn for nothing.

    Args:
        model: with normalized latents.
        pictures: to judge by, shape (N, 3, H, W), uint8.
        device: where.

    Returns:
        The silenced channels: without them the error grows by less than a hundredth.
    """
    target = to_model(pictures, device)
    latent = model.encode(target).latent_dist.mean
    error = functional.mse_loss(model.decode(latent).sample, target)
    silenced = []
    for channel in range(latent.shape[1]):
        without = latent.clone()
        without[:, channel] = 0
        if functional.mse_loss(model.decode(without).sample, target) < 1.01 * error:
            model.quant_conv.weight[channel] = 0
            model.quant_conv.bias[channel] = 0
            silenced.append(channel)
    return silenced


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder")
    parser.add_argument("--minutes", type=float, default=25, help="training time, all starts together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 48, 96], help="channels of each level")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--kl", type=float, default=4e-3, help="weight of the KL divergence a latent value")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    return parser.parse_args()


def main() -> None:
    """Train, fold the normalization in, save in diffusers' format and report the error."""
    args = parse_arguments()
    model = train(args)
    device = torch.device(args.device)
    pictures, held_out = load_images(args.work)
    error = mean_squared_error(model, held_out, device)
    sample = pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:2048]]
    fold_normalization(model, sample, device)
    silenced = silence_unused_channels(model, sample[:256], device)
    folded = mean_squared_error(model, held_out, device)
    model.save_pretrained(args.work / "vae")
    report = {"held_out_pictures": len(held_out), "mse": error, "mse_folded": folded, "unused_channels": silenced}
    (args.work / "autoencoder.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
