"""Train the emoji base: text encoder and UNet together, from scratch, on latents of `train_autoencoder.py`.

Flow matching: at time t in (0, 1) the model sees (1 - t) * latent + t * noise and predicts noise - latent.
Resumable: the same command continues from the last checkpoint. `--minutes` is the total training time over
all starts; the learning rate reaches zero exactly then, however fast the machine is.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import sets
import torch
from concepts import base_concepts
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor, nn
from train_autoencoder import save_atomically, to_model
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_WORDS = 16  # text positions, begin and end marks included: short, since cross-attention pays for each


@dataclass
class Data:
    """What one training run reads, all in memory.

    Attributes:
        latents: shape (N, 4, 16, 16), mean 0 and deviation 1 in each channel.
        tokens: wordings of each latent's caption, shape (N, V, MAX_WORDS), int64.
        no_tokens: the empty caption, shape (MAX_WORDS,), int64.
    """

    latents: Tensor
    tokens: Tensor
    no_tokens: Tensor


def wordings(caption: str) -> list[str]:
    """Say a caption in the ways people prompt: "rocket", "a rocket", "rocket emoji"."""
    article = "an" if caption[0] in "aeiou" else "a"
    return [caption, f"{article} {caption}", f"{caption} emoji"]


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Make a CLIP tokenizer to which every word of the captions is one token; others fall into pieces."""
    # Byte pairs are merged until nothing is left to merge, which is far below this size.
    blank = CLIPTokenizer(model_max_length=MAX_WORDS)
    tokenizer = blank.train_new_from_iterator(sorted(captions), 20_000, show_progress=False)
    tokenizer.model_max_length = MAX_WORDS
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """Make the untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_WORDS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(channels: tuple[int, ...], text_width: int, layers: int) -> UNet2DConditionModel:
    """Make the untrained UNet; its first prediction is zero.

    The text reaches it twice: through cross-attention in the two lower levels, and pooled, with the time, in every
    residual block. That is a second, shorter way for the caption into the model.
    """
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=layers,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


class TextToImage(nn.Module):
    """Text encoder and UNet as one module, which is what is trained, averaged and saved."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        """Hold the two parts."""
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Predict noise - latent.

        Args:
            noisy: shape (B, 4, 16, 16).
            times: share of noise, shape (B,), 0 to 1.
            tokens: captions, shape (B, MAX_WORDS), int64.

        Returns:
            Shape (B, 4, 16, 16).
        """
        text = self.text_encoder(tokens)[0]
        return self.unet(noisy, times * 1000, text, return_dict=False)[0]


@torch.no_grad()
def load_data(work: Path, tokenizer: CLIPTokenizer, device: torch.device) -> Data:
    """Encode all pictures and captions of the base's concepts once."""
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device)
    concepts = base_concepts(work)
    captions = [wording for name in concepts for wording in wordings(sets.caption_of(name))]
    names, images = sets.load(sets.BASE, work)
    rows = [names.index(name) for name in concepts]
    pictures = torch.from_numpy(images[rows]).permute(0, 3, 1, 2)
    latents = torch.cat([vae.encode(to_model(batch, device)).latent_dist.mean for batch in pictures.split(64)])

    def tokenize(captions: list[str]) -> Tensor:
        return tokenizer(captions, padding="max_length", max_length=MAX_WORDS, return_tensors="pt").input_ids

    tokens = tokenize(captions).view(len(concepts), -1, MAX_WORDS)
    return Data(latents.to(device), tokens.to(device), tokenize([""])[0].to(device))


def sample_times(count: int, shift: float, device: torch.device) -> Tensor:
    """Draw logit-normal times, stratified so that every batch sees all noise levels.

    Args:
        count: how many.
        shift: mean of the logit; above 0 draws more noise levels near pure noise, where layout is settled.
        device: where.

    Returns:
        Shape (count,), in (0, 1).
    """
    quantiles = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    return torch.special.ndtri(quantiles.clamp(1e-4, 1 - 1e-4)).add(shift).sigmoid()


def flow_loss(model: nn.Module, data: Data, rows: Tensor, dropout: float, shift: float) -> Tensor:
    """Flow-matching loss of a batch.

    Args:
        model: text encoder and UNet.
        data: latents and captions.
        rows: which of them, shape (B,).
        dropout: share of captions left out, which guidance needs.
        shift: mean logit of the times.

    Returns:
        Mean squared error, a scalar.
    """
    # The bare name is what most people type, and what the styles are captioned with.
    wording = torch.multinomial(torch.tensor([0.7, 0.15, 0.15]), len(rows), replacement=True).to(rows.device)
    latents, tokens = data.latents[rows], data.tokens[rows, wording]
    dropped = torch.rand(len(rows), 1, device=rows.device) < dropout
    tokens = torch.where(dropped, data.no_tokens, tokens)
    times = sample_times(len(rows), shift, rows.device)
    noise = torch.randn_like(latents)
    share = times.view(-1, 1, 1, 1)
    noisy = torch.lerp(latents, noise, share).contiguous(memory_format=torch.channels_last)
    return nn.functional.mse_loss(model(noisy, times, tokens), noise - latents)


def learning_rate(done: float, step: int, peak: float, warm_up: int) -> float:
    """Linear warm-up by steps, then cosine decay by time.

    Args:
        done: share of the planned time that is over, 0 to 1.
        step: steps taken.
        peak: the highest rate.
        warm_up: steps of the warm-up.

    Returns:
        The rate of this step.
    """
    return peak * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def batches(count: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield rows without end, each concept once an epoch, in random order."""
    rows = torch.randperm(count)
    while True:
        if len(rows) < size:
            rows = torch.cat([rows, torch.randperm(count)])
        yield rows[:size].to(device)
        rows = rows[size:]


def set_gradients(
    weights: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    pool: ThreadPoolExecutor,
    size: int,
) -> float:
    """Compute the gradients of a batch, a few of its pictures at a time, on all threads of a pool.

    For a CPU that other programs use too: PyTorch's own splitting of every operation waits for the slowest core each
    time, here a thread that is held up leaves more of the batch to the others.

    Args:
        weights: their gradients are set.
        loss_of: mean loss of some rows.
        rows: the batch, shape (B,).
        pool: threads.
        size: how many pictures a thread takes at a time.

    Returns:
        Loss of the batch.
    """

    def share_of(part: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_of(part) * (len(part) / len(rows))
        return loss.item(), torch.autograd.grad(loss, weights)

    losses, gradients = zip(*pool.map(share_of, rows.split(size)), strict=True)
    for other in gradients[1:]:
        torch._foreach_add_(gradients[0], other)
    for weight, gradient in zip(weights, gradients[0], strict=True):
        weight.grad = gradient
    return sum(losses)


def train(args: argparse.Namespace) -> None:
    """Train until the planned time is over, writing a checkpoint every few minutes."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    captions = [wording for name in base_concepts(args.work) for wording in wordings(sets.caption_of(name))]
    checkpoint = args.work / "base.pt"
    if checkpoint.exists():
        # The one it began with: building one breaks ties at random, and its numbers are what the embeddings stand for.
        tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    else:
        tokenizer = build_tokenizer(captions)
        tokenizer.save_pretrained(args.work / "tokenizer")
    data = load_data(args.work, tokenizer, device)
    text_encoder = build_text_encoder(tokenizer, args.text_width, args.text_layers)
    unet = build_unet(tuple(args.channels), args.text_width, args.layers)
    model = TextToImage(text_encoder, unet).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    weights, averages = list(model.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(weights, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    facts = {key: getattr(args, key) for key in ("channels", "layers", "text_width", "text_layers", "dropout")}
    seconds, step = 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        seconds, step = state["seconds"], state["step"]
        torch.manual_seed(step)
    if args.threads > 1:
        torch.set_num_threads(1)
    # Smaller shares than one a thread, so that a thread that other programs hold up is given fewer.
    size = args.batch_size if args.threads == 1 else max(1, args.batch_size // (2 * args.threads))
    pool = ThreadPoolExecutor(args.threads)
    loss_of = partial(flow_loss, model, data, dropout=args.dropout, shift=args.time_shift)
    shuffled = batches(len(data.latents), args.batch_size, device)

    total = args.minutes * 60
    last = last_save = time.monotonic()
    recent: list[float] = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("base", total=total, completed=seconds)
        while seconds < total:
            recent.append(set_gradients(weights, loss_of, next(shuffled), pool, size))
            rate = learning_rate(seconds / total, step, args.lr, args.warm_up)
            for group in optimizer.param_groups:
                group["lr"] = rate
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            step += 1
            if step % args.average_every == 0:
                decay = min(args.average_decay, step / (step + 100)) ** args.average_every
                torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - decay)
            now = time.monotonic()
            seconds, last = seconds + now - last, now
            progress.update(bar, completed=seconds, description=f"base step {step} loss {np.mean(recent):.4f}")
            if now - last_save > args.save_every or seconds >= total:
                images = step * args.batch_size
                speed = len(recent) * args.batch_size / (now - last_save)
                progress.print(
                    f"step {step}, {images} images, {seconds / 60:.1f} min, {speed:.1f} images/s, "
                    f"loss {np.mean(recent):.4f}, rate {rate:.1e}"
                )
                state = {"model": model.state_dict(), "average": average.state_dict()}
                state |= {"optimizer": optimizer.state_dict(), "facts": facts, "captions": captions}
                state |= {"seconds": seconds, "step": step, "images": images}
                save_atomically(state, checkpoint)
                recent, last_save = [], now


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder")
    parser.add_argument("--minutes", type=float, default=180, help="training time, all starts together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    parser.add_argument("--channels", type=int, nargs=3, default=[64, 128, 192], help="channels of each level")
    parser.add_argument("--layers", type=int, default=1, help="residual layers a block")
    parser.add_argument("--text-width", type=int, default=128, help="width of the text encoder")
    parser.add_argument("--text-layers", type=int, default=2, help="layers of the text encoder")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--warm-up", type=int, default=200, help="steps of rising learning rate")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of captions left out")
    parser.add_argument("--time-shift", type=float, default=1.0, help="mean logit of the times")
    parser.add_argument("--average-decay", type=float, default=0.999, help="decay a step of the averaged weights")
    parser.add_argument("--average-every", type=int, default=4, help="steps between updates of the average")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads that share a batch: a busy CPU's cores, 1 on a GPU"
    )
    return parser.parse_args()


if __name__ == "__main__":
    train(parse_arguments())
