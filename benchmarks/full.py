"""SD 1.5 at full size, with random weights: what adapters cost where layers are as large as people's own.

The emoji base's layers take tens of microseconds, and so does calling what is added to them. These do not.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.contestants import (
    EXPERTS,
    LORA,
    RANK,
    batch_for,
    generation_step,
    training_step,
    with_fera,
    with_lora,
    with_released,
)
from benchmarks.full_models import random_buffer, with_weights
from benchmarks.meters import PEAK_BYTES
from benchmarks.race import Comparison, Race
from benchmarks.small_sd15 import FULL, TINY, Sizes, autoencoder_of, text_encoder_of, unet_of
from fera.bases import lay_out


def races(small: bool) -> Iterator[Race]:
    """A step of generation of one picture with guidance, a training step of one, its memory: at 512 x 512 pixels."""
    sizes, buffer, adapters = TINY if small else FULL, random_buffer(small), f"r={RANK}, E={EXPERTS}"
    base = lay_out(_made(unet_of, sizes, buffer))
    batch = batch_for(base, 1, sizes.tokens)
    fera, lora, released = with_fera(base), with_lora(base), with_released(base)
    call = (
        torch.cat([batch.latent] * 2),
        torch.tensor(500),
        torch.randn(2, sizes.tokens, base.config.cross_attention_dim),
    )
    yield Race(
        f"generation step, SD 1.5 at full size, batch 2, {adapters}",
        {
            "fera": generation_step(fera, *call),
            "base alone": generation_step(base, *call),
            f"{LORA}, unmerged": generation_step(lora, *call),
        },
        [Comparison("fera", "base alone", 1.03), Comparison("fera", f"{LORA}, unmerged", 0.95)],
        rounds=5,
        warm_up=1,
    )
    steps = {"fera": training_step(fera, batch), LORA: training_step(lora, batch)}
    yield Race(
        f"training step, SD 1.5 at full size, batch 1, {adapters}",
        steps | {"released form": training_step(released, batch)},
        [Comparison("fera", LORA, 1.00), Comparison("fera", "released form", 0.65)],
        rounds=4,
        warm_up=1,
    )
    # Without channels last: as diffusers' script has it.
    plain = training_step(with_lora(_made(unet_of, sizes, buffer)), batch)
    yield Race(
        f"training step from pictures and captions, SD 1.5 at full size, batch 1, {adapters}",
        {"fera, encoded before": steps["fera"], "diffusers' way": _encoding(sizes, buffer, plain)},
        [Comparison("diffusers' way", "fera, encoded before", at_least=1.5)],
        rounds=4,
        warm_up=1,
    )
    yield Race(
        "peak memory of a training step, SD 1.5 at full size, batch 1",
        steps,
        [Comparison("fera", LORA, 1.00)],
        rounds=1,
        warm_up=0,  # the race before has made the optimizer's state
        meter=PEAK_BYTES,
    )


def _made(part: Callable[[Sizes], nn.Module], sizes: Sizes, buffer: Tensor) -> nn.Module:
    """A part of the pipeline with random weights."""
    with torch.device("meta"):
        model = part(sizes)
    return with_weights(model, buffer).eval()


def _encoding(sizes: Sizes, buffer: Tensor, step: Callable[[], None]) -> Callable[[], None]:
    """A training step that encodes its picture and caption first; it trains on other numbers, at the same cost."""
    autoencoder, text_encoder = (_made(part, sizes, buffer) for part in (autoencoder_of, text_encoder_of))
    picture = torch.randn(1, 3, 8 * sizes.side, 8 * sizes.side)
    tokens = torch.randint(sizes.vocabulary, (1, sizes.tokens))

    def encode_and_step() -> None:
        with torch.no_grad():
            autoencoder.encode(picture).latent_dist.sample()
            text_encoder(tokens)
        step()

    return encode_and_step
