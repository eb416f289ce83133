"""Blocks that wait: what the device holds in a training step, and its time, at full width and a quarter of the depth.

On a CPU the device is the same memory: copies that come for their use are counted as its, what waits is not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.allocations import peak_allocated
from benchmarks.contestants import Batch, batch_for, training_step, with_fera
from benchmarks.full_models import SDXL, flux_batch, made, random_buffer, sdxl_of
from benchmarks.meters import Meter
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from fera.pipelines.block_offload import BlockOffload, offload_blocks, waiting_names

_QUARTER_OF_SDXL = SDXL | {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2)}
_QUARTER_OF_FLUX = {"num_layers": 5, "num_single_layers": 10}
ALL = "all on the device"
REPORTED_BYTES = Meter(lambda work, clock: float(work()), "MB", 1e-6)


def races(setting: Setting) -> Iterator[Race]:
    """Memory of the device and time of a step, checkpointed, beside the same with all blocks on the device."""
    buffer = random_buffer(setting)
    for name, build, batch_of in (("SDXL", _sdxl, _sdxl_batch), ("FLUX.1", _flux, _flux_batch)):
        base = made(lambda build=build: build(setting.small), buffer)  # type: ignore[misc]
        base.enable_gradient_checkpointing()
        steps: dict[str, Callable[[], None]] = {}
        held: dict[str, Callable[[], float]] = {}
        batch = batch_of(base, setting)
        for title, count in ((ALL, None), ("two blocks", 2), ("one block", 1)):
            denoiser = with_fera(base)
            if count is not None:
                offload_blocks(denoiser, setting.device, "blocks", count)
            steps[title] = training_step(denoiser, batch)
            held[title] = _held(denoiser, steps[title], setting)
        case = f"{name} at full width and a quarter of the depth, checkpointed"
        others = [title for title in steps if title != ALL]
        yield Race(
            f"memory of the device in a training step, {case}",
            held,
            [Comparison(title, ALL, 0.35) for title in others],
            rounds=1,
            warm_up=1,
            meter=REPORTED_BYTES,
        )
        yield Race(
            f"training step, {case}", steps, [Comparison(title, ALL, 1.15) for title in others], rounds=3, warm_up=1
        )
        del base, steps, held


def _held(denoiser: nn.Module, step: Callable[[], None], setting: Setting) -> Callable[[], float]:
    """Bytes on the device: what stays there, and the most that a step adds."""

    def measure() -> float:
        waiting = {*waiting_names(denoiser)}
        stay = sum(weight.nbytes for name, weight in denoiser.named_parameters() if name not in waiting)
        if not setting.is_cpu:
            return stay + peak_allocated(step, setting.device)
        # The profiler sees no allocations of the thread that copies: at most, both peaks fall together.
        with _copies() as peaks:
            return stay + peak_allocated(step, setting.device) + max(peaks, default=0)

    return measure


@contextmanager
def _copies() -> Iterator[list[int]]:
    """Bytes of the copies that were alive whenever one had been made."""
    alive: list[tuple[StorageWeakRef, int]] = []
    peaks: list[int] = []
    copy = BlockOffload._copy

    def counting(offload: BlockOffload, block: Any, used: Any, weights: list[Tensor]) -> None:
        copy(offload, block, used, weights)
        alive.extend((StorageWeakRef(weight.untyped_storage()), weight.nbytes) for weight in weights)
        alive[:] = [(storage, count) for storage, count in alive if not storage.expired()]
        peaks.append(sum(count for _, count in alive))

    BlockOffload._copy = counting  # type: ignore[method-assign]
    try:
        yield peaks
    finally:
        BlockOffload._copy = copy  # type: ignore[method-assign]


def _sdxl(small: bool) -> nn.Module:
    return sdxl_of(small) if small else UNet2DConditionModel.from_config(_QUARTER_OF_SDXL)


def _sdxl_batch(base: nn.Module, setting: Setting) -> Batch:
    return batch_for(base, 1, 77)


def _flux(small: bool) -> nn.Module:
    width = {"num_attention_heads": 1, "num_layers": 5, "num_single_layers": 10} if small else _QUARTER_OF_FLUX
    return FluxTransformer2DModel(guidance_embeds=True, **width)


def _flux_batch(base: nn.Module, setting: Setting) -> Batch:
    return flux_batch(base, setting.small)
