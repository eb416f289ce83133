"""Memory that the frozen weights of a denoiser take, by how they are held."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fera.models.components import offloadable_blocks
from fera.pipelines.block_offload import blocks_on_device
from fera.pipelines.quantization_kinds import KINDS
from fera.pipelines.weight_files import dtype_of, files_of
from fera.tuner.fingerprint import added_tensors

# Of a device's memory: PyTorch's allocator and the driver keep some for themselves.
USABLE = 0.95

# From what is fastest to what takes the least memory of the device, as far as each is of use with each other.
WAYS: tuple[tuple[str, str], ...] = (
    ("none", "none"),
    ("8bit", "none"),
    ("4bit", "none"),
    ("none", "blocks"),
    ("4bit", "blocks"),
    ("none", "disk"),
)


@dataclass(frozen=True)
class Held:
    """A way to hold frozen weights, and what it takes.

    Args:
        quantization: "none", or a name in `KINDS`.
        offload: "none", "blocks" or "disk", as `train.offload`.
        device_bytes: where the denoiser computes.
        host_bytes: of the machine's memory, for blocks that wait.
        disk_bytes: in the base's files, for blocks that wait there.
    """

    quantization: str
    offload: str
    device_bytes: int
    host_bytes: int = 0
    disk_bytes: int = 0

    def __str__(self) -> str:
        settings = [("quantization", self.quantization), ("train.offload", self.offload)]
        return ", ".join(f'{name} = "{value}"' for name, value in settings if value != "none") or "all on the device"


def held(
    denoiser: nn.Module,
    dtype: torch.dtype,
    quantization: str = "none",
    offload: str = "none",
    blocks: int | str = "auto",
) -> Held:
    """What a denoiser's frozen weights will take.

    Args:
        denoiser: it, not quantized, with its weights or without, with adapters or without: these are not counted.
        dtype: the dtype of weights that are not quantized.
        quantization: as in the configuration.
        offload: likewise, `train.offload`.
        blocks: likewise, `train.blocks_on_device`.
    """
    exact: Any = getattr(denoiser, "_keep_in_fp32_modules", None) or []
    sizes = _Sizes({exact} if isinstance(exact, str) else {*exact}, dtype, quantization)
    total = sizes.of(denoiser)
    if offload == "none":
        return Held(quantization, offload, total)
    each = sorted((sizes.of(block) for block in offloadable_blocks(denoiser)), reverse=True)
    device = total - sum(each[blocks_on_device(blocks) :])
    waits = {"host_bytes" if offload == "blocks" else "disk_bytes": sum(each)}
    return Held(quantization, offload, device, **waits)


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None of a device that shares the machine's."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def ways_to_hold(denoiser: nn.Module, dtype: torch.dtype, blocks: int | str = "auto") -> list[Held]:
    """All ways that suit a denoiser, from the fastest to the smallest.

    Blocks wait on the disk where files hold them in the run's precision, as far as files are known.

    Args:
        denoiser: as `held` takes it.
        dtype: likewise.
        blocks: likewise.
    """
    offloads = {"none"}
    if offloadable_blocks(denoiser):
        files = files_of(denoiser)
        offloads |= {"blocks", "disk"} if not files or dtype_of(files) == dtype else {"blocks"}
    return [held(denoiser, dtype, *way, blocks) for way in WAYS if way[1] in offloads]


class _Sizes:
    """Bytes of a module's frozen weights."""

    def __init__(self, exact: set[str], dtype: torch.dtype, quantization: str) -> None:
        self._exact, self._dtype, self._quantization = exact, dtype, quantization

    def of(self, module: nn.Module) -> int:
        added = {id(tensor) for tensor in added_tensors(module)}
        seen: set[int] = set()
        total = 0
        for path, layer in module.named_modules():
            for name, weight in layer.named_parameters(recurse=False):
                if id(weight) in added or id(weight) in seen:
                    continue
                seen.add(id(weight))
                total += self._bytes(layer, f"{path}.{name}", weight)
        return total

    def _bytes(self, layer: nn.Module, path: str, weight: nn.Parameter) -> int:
        is_exact = not self._exact.isdisjoint(path.split("."))
        if is_exact and self._dtype.itemsize < torch.float32.itemsize:
            return weight.numel() * torch.float32.itemsize
        if not weight.is_floating_point():
            return weight.nbytes  # it came quantized
        kind = KINDS.get(self._quantization)
        if kind is not None and isinstance(layer, nn.Linear) and not is_exact:
            if path.endswith(".weight"):
                rows, columns = weight.shape
                return kind.bytes_of(rows, columns, self._dtype.itemsize)
            if kind.bias_in_float32:
                return weight.numel() * torch.float32.itemsize
        return weight.numel() * self._dtype.itemsize
