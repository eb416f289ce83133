"""Show what the base can do: pictures for the docs, and tables of numbers on standard output.

Written are grids of prompts, reconstructions of the autoencoder and the denoising loss along the noise level.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sets
import torch
from concepts import base_concepts
from diffusers import AutoencoderKL, StableDiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image
from train_autoencoder import to_model
from train_base import MAX_WORDS, Data, TextToImage, load_data

PROMPTS = (
    "grinning face,crying face,sleeping face,red heart,broken heart,skull,ghost,alien,"
    "dog face,cat face,koala,pig face,rabbit face,tiger face,chicken,penguin,"
    "turtle,snake,octopus,fish,whale,lady beetle,rose,cactus,"
    "red apple,grapes,watermelon,banana,strawberry,pizza,hamburger,birthday cake,"
    "soccer ball,basketball,trophy,balloon,guitar,crown,light bulb,closed book,"
    "house,rocket,automobile,airplane,sailboat,rainbow,full moon,fire"
).split(",")
CPU = torch.device("cpu")


def draw(pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float, seed: int) -> np.ndarray:
    """Generate one picture a prompt, each from its own seed, so that a prompt's picture depends on no other.

    Args:
        pipeline: the base.
        prompts: N prompts.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        seed: seed of the first picture; the next picture has the next seed.

    Returns:
        Shape (N, 64, 64, 3), 0 to 1.
    """
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    return pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type="np",
    ).images


def picture_grid(pictures: np.ndarray, titles: list[str], columns: int) -> Figure:
    """Lay pictures of shape (N, H, W, 3) out row by row, each under its title."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, interpolation="lanczos")
        axis.set_title("\n".join(title.rsplit(" ", 1)) if len(title) > 16 else title, fontsize=7, pad=2)
    figure.tight_layout(pad=0.4)
    return figure


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Save a figure as a PNG of 256 colours: a quarter of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    Image.open(buffer).convert("RGB").quantize(256).save(path, optimize=True)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pass pictures through the autoencoder.

    Args:
        vae: the autoencoder.
        images: shape (N, 64, 64, 3), uint8.

    Returns:
        Reconstructions of the same shape, 0 to 1, and the mean squared error of each on [-1, 1], shape (N,).
    """
    outputs, errors = [], []
    for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(64):
        target = to_model(batch, CPU)
        output = vae.decode(vae.encode(target).latent_dist.mean).sample
        errors.append((output - target).square().mean((1, 2, 3)))
        outputs.append(output.clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 1))
    return torch.cat(outputs).numpy(), torch.cat(errors).numpy()


@torch.no_grad()
def loss_by_time(model: TextToImage, data: Data, times: list[float], captioned: bool) -> list[float]:
    """Flow-matching loss at fixed times, on noise that training has not drawn, the same at every time.

    Args:
        model: text encoder and UNet.
        data: latents and captions.
        times: shares of noise, 0 to 1.
        captioned: give the model the captions, or the empty caption.

    Returns:
        Mean squared error at each time; predicting zero would give about 2.
    """
    noise = torch.randn(data.latents.shape, generator=torch.Generator().manual_seed(123_456))
    tokens = data.tokens[:, 0] if captioned else data.no_tokens.expand(len(noise), MAX_WORDS)
    losses = []
    for time in times:
        squares = []
        for latent, fresh, words in zip(data.latents.split(64), noise.split(64), tokens.split(64), strict=True):
            output = model(torch.lerp(latent, fresh, time), torch.full((len(latent),), time), words)
            squares.append((output - (fresh - latent)).square().mean((1, 2, 3)))
        losses.append(torch.cat(squares).mean().item())
    return losses


def show_reconstructions(pipeline: StableDiffusionPipeline, work: Path, folder: Path) -> None:
    """Save test pictures above their reconstructions; print a row of errors a set."""
    print("| set | in its training | mean squared error on [-1, 1] | PSNR, dB |\n|---|---|---|---|")
    shown, titles = [], []
    for entry in sets.SETS:
        names, images = sets.load(entry, work)
        test = images[[sets.split_of(name) == "test" for name in names]]
        output, errors = reconstruct(pipeline.vae, test)
        seen = "yes, other concepts" if entry in sets.PERMISSIVE else "no"
        print(f"| {entry.name} | {seen} | {errors.mean():.4f} | {10 * np.log10(4 / errors).mean():.1f} |")
        picks = np.linspace(0, len(test) - 1, 12).astype(int)
        shown += [*(test[picks] / 255), *output[picks]]
        titles += [entry.name if column == 0 else "" for column in range(12)] + [""] * 12
    save(picture_grid(np.stack(shown), titles, 12), folder / "base-reconstruction.png", dpi=75)


def show_losses(pipeline: StableDiffusionPipeline, work: Path, folder: Path) -> None:
    """Save and print the denoising loss along the noise level, with the caption and without."""
    data = load_data(work, pipeline.tokenizer, CPU)
    keep = torch.arange(0, len(data.latents), 4)
    data = Data(data.latents[keep], data.tokens[keep], data.no_tokens)
    model = TextToImage(pipeline.text_encoder, pipeline.unet)
    times = [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98]
    captioned, bare = (loss_by_time(model, data, times, captioned=value) for value in (True, False))
    print("\n| timestep | loss with the caption | loss with an empty caption |\n|---|---|---|")
    for time, first, second in zip(times, captioned, bare, strict=True):
        print(f"| {1000 * time:.0f} | {first:.3f} | {second:.3f} |")
    figure, axis = plt.subplots(figsize=(5, 3))
    axis.plot([1000 * time for time in times], captioned, marker="o", label="with the caption")
    axis.plot([1000 * time for time in times], bare, marker="o", label="with an empty caption")
    axis.set(xlabel="timestep (1000 = noise)", ylabel="flow-matching loss", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "base-loss.png", dpi=110)


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder")
    parser.add_argument("--base", type=Path, default=Path("src/fera/demo/base"), help="pipeline folder")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="where the pictures go")
    parser.add_argument("--steps", type=int, default=24, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture")
    parser.add_argument("--grid-only", action="store_true", help="only the grid, for a look at an unfinished run")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(args.base)
    pipeline.set_progress_bar_config(disable=True)
    prompts = list(PROMPTS)
    pictures = draw(pipeline, prompts, args.steps, args.guidance, args.seed)
    save(picture_grid(pictures, prompts, 8), args.output / "base-grid.png")
    if not args.grid_only:
        unseen = [name for name in base_concepts(args.work) if sets.split_of(name) == "test"]
        captions = [sets.caption_of(name) for name in unseen[:64]]
        pictures = draw(pipeline, captions, args.steps, args.guidance, args.seed)
        save(picture_grid(pictures, captions, 8), args.output / "base-test-concepts.png")
        show_reconstructions(pipeline, args.work, args.output)
        show_losses(pipeline, args.work, args.output)


if __name__ == "__main__":
    main()
