"""Models at full size, with random weights: what adapters cost where layers are as large as people's own.

The emoji base's layers take tens of microseconds, and so does calling what is added to them. These do not. A CPU runs
SD 1.5; a GPU also SDXL and FLUX.1.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.contestants import (
    EXPERTS,
    LORA,
    RANK,
    Batch,
    batch_for,
    generation_step,
    training_step,
    with_fera,
    with_lora,
    with_released,
)
from benchmarks.full_models import flux_batch, flux_of, made, random_buffer, sdxl_of
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.small_sd15 import FULL, TINY, Sizes, autoencoder_of, text_encoder_of, unet_of
from fera.pipelines.base import lay_out

ADAPTERS = f"r={RANK}, E={EXPERTS}"


def races(setting: Setting) -> Iterator[Race]:
    """A step of generation, a training step, its memory: SD 1.5 at 512 x 512 pixels, the others at 1024 x 1024."""
    sizes, buffer = TINY if setting.small else FULL, random_buffer(setting)
    base = lay_out(made(lambda: unet_of(sizes), buffer))
    size = 1 if setting.is_cpu else 4
    yield _generation(setting, "SD 1.5", base, batch_for(base, 1, sizes.tokens).guided())
    yield from _training(setting, "SD 1.5", base, batch_for(base, size, sizes.tokens))
    yield _from_pictures(setting, sizes, buffer, base, batch_for(base, size, sizes.tokens))
    if setting.is_cpu:
        return
    del base
    base = lay_out(made(lambda: sdxl_of(setting.small), buffer))
    yield _generation(setting, "SDXL", base, batch_for(base, 1, 77).guided())
    yield from _training(setting, "SDXL", base, batch_for(base, 2, 77))
    del base
    base = made(lambda: flux_of(setting.small), buffer)
    yield _generation(setting, "FLUX.1", base, flux_batch(base, setting.small))
    base.enable_gradient_checkpointing()
    yield from _training(setting, "FLUX.1, checkpointed", base, flux_batch(base, setting.small), released=False)


def _generation(setting: Setting, name: str, base: nn.Module, batch: Batch) -> Race:
    return Race(
        f"generation step, {name} at full size, batch {_size(batch)}, {ADAPTERS}",
        {
            "fera": generation_step(with_fera(base), batch),
            "base alone": generation_step(base, batch),
            f"{LORA}, unmerged": generation_step(with_lora(base), batch),
        },
        [
            Comparison("fera", "base alone", 1.03),
            Comparison("fera", f"{LORA}, unmerged", 0.95),
            Comparison(f"{LORA}, unmerged", "base alone"),
        ],
        rounds=5 if setting.is_cpu else 20,
        warm_up=1,
    )


def _training(setting: Setting, name: str, base: nn.Module, batch: Batch, *, released: bool = True) -> Iterator[Race]:
    """A step and its memory; the released form knows UNets alone."""
    pair = {"fera": training_step(with_fera(base), batch), LORA: training_step(with_lora(base), batch)}
    comparisons = [Comparison("fera", LORA, 1.00)]
    steps = dict(pair)
    if released:
        steps["released form"] = training_step(with_released(base), batch)
        comparisons += [Comparison("fera", "released form", 0.65), Comparison(LORA, "released form")]
    case = f"{name} at full size, batch {_size(batch)}, {ADAPTERS}"
    yield Race(f"training step, {case}", steps, comparisons, rounds=4 if setting.is_cpu else 12, warm_up=1)
    yield Race(
        f"peak memory of a training step, {case}",
        pair,
        [Comparison("fera", LORA, 1.00)],
        rounds=1,
        warm_up=0,  # the race before has made the optimizer's state
        meter=setting.peak_bytes,
    )


def _from_pictures(setting: Setting, sizes: Sizes, buffer: Tensor, base: nn.Module, batch: Batch) -> Race:
    # Without channels last: as diffusers' script has it.
    plain = training_step(with_lora(made(lambda: unet_of(sizes), buffer)), batch)
    return Race(
        f"training step from pictures and captions, SD 1.5 at full size, batch {_size(batch)}, {ADAPTERS}",
        {
            "fera, encoded before": training_step(with_fera(base), batch),
            "diffusers' way": _encoding(setting, sizes, buffer, _size(batch), plain),
        },
        [Comparison("diffusers' way", "fera, encoded before", at_least=1.5)],
        rounds=4 if setting.is_cpu else 12,
        warm_up=1,
    )


def _size(batch: Batch) -> int:
    """Samples that the denoiser is called with."""
    return len(next(iter(batch.inputs.values())))


def _encoding(
    setting: Setting, sizes: Sizes, buffer: Tensor, count: int, step: Callable[[], None]
) -> Callable[[], None]:
    """A training step that encodes its pictures and captions first; it trains on other numbers, at the same cost."""
    autoencoder, text_encoder = (
        made(lambda part=part: part(sizes), buffer) for part in (autoencoder_of, text_encoder_of)
    )
    side = 8 * sizes.side
    pictures = torch.randn(count, 3, side, side, device=setting.device, dtype=setting.dtype)
    tokens = torch.randint(sizes.vocabulary, (count, sizes.tokens), device=setting.device)

    def encode_and_step() -> None:
        with torch.no_grad():
            autoencoder.encode(pictures).latent_dist.sample()
            text_encoder(tokens)
        step()

    return encode_and_step
