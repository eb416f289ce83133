"""The ways to hold a denoiser's linear layers in few bits: what each needs, and what it takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from fera.errors import FeraError

_FLOAT32 = torch.float32.itemsize
# bitsandbytes keeps a float32 scale for each block of 64 of a 4-bit weight.
_BLOCK = 64
# torchao keeps a bfloat16 scale and zero point for each group of a 4-bit weight.
_GROUP = 128


def _per_row(extra: int) -> Callable[[int, int, int], int]:
    return lambda rows, columns, itemsize: rows * columns + rows * extra


@dataclass(frozen=True)
class Kind:
    """A way to hold linear layers.

    Args:
        title: what it is.
        bytes_of: (rows, columns, bytes a number of the run's precision) to bytes that a weight takes.
        module: the package that it needs, as it is imported; empty for none.
        package: its name for pip.
        needs_gpu: whether its layers do not compute on a CPU.
        needs_bf16: whether its layers compute in bfloat16 alone.
        offloads: whether its blocks can wait in host memory (`train.offload = "blocks"`).
        bias_in_float32: whether biases are held in float32.
    """

    title: str
    bytes_of: Callable[[int, int, int], int] = field(repr=False)
    module: str = ""
    package: str = ""
    needs_gpu: bool = False
    needs_bf16: bool = False
    offloads: bool = False
    bias_in_float32: bool = False


def _quanto_group(columns: int) -> int:
    """Numbers of a row that quanto gives one scale in 4 bits."""
    group = 128
    if columns <= group:
        return columns
    while columns % group and group > 32:
        group -= 32
    return columns if columns % group else group


KINDS: dict[str, Kind] = {
    "8bit": Kind(
        "LLM.int8",
        _per_row(_FLOAT32),
        "bitsandbytes",
        "bitsandbytes",
        bias_in_float32=True,
    ),
    "4bit": Kind(
        "NF4, as QLoRA",
        lambda rows, columns, itemsize: -(-rows * columns // 2) + -(-rows * columns // _BLOCK) * _FLOAT32,
        "bitsandbytes",
        "bitsandbytes",
        offloads=True,
    ),
    "fp8": Kind("8-bit floats (E4M3), a scale a row", _per_row(_FLOAT32), offloads=True),
    "torchao-int8": Kind("8-bit integers, a scale a row", _per_row(_FLOAT32 + 1), "torchao", "torchao"),
    "torchao-fp8": Kind("8-bit floats (E4M3), a scale a row", _per_row(_FLOAT32), "torchao", "torchao"),
    "torchao-int4": Kind(
        f"4-bit integers, a scale every {_GROUP}",
        lambda rows, columns, itemsize: -(-rows * columns // 2) + -(-rows * columns // _GROUP) * 2 * 2,
        "torchao",
        "torchao",
        needs_gpu=True,
        needs_bf16=True,
    ),
    # Not quanto's 8 bits: layers of few inputs end the process in bfloat16 on a CPU (0.2.7, PyTorch 2.13).
    "quanto-int4": Kind(
        "4-bit integers, a scale every 128 or less",
        lambda rows, columns, itemsize: (
            -(-rows // 2) * columns + rows * (columns // _quanto_group(columns)) * 2 * itemsize
        ),
        "optimum.quanto",
        "optimum-quanto",
    ),
}


def check_quantization(quantization: str, device: torch.device | None = None) -> None:
    """See whether a denoiser could be quantized here.

    Args:
        quantization: "none", or a name in `KINDS`.
        device: where it is to compute; not looked at when left out.

    Raises:
        FeraError: its package is missing, or the device is not for it.
    """
    if quantization == "none":
        return
    kind = KINDS[quantization]
    if kind.module and not _is_there(kind.module):
        raise FeraError(
            f"quantization = {quantization!r} needs {kind.package}, which is not installed: "
            "pip install 'fera[quantized]'"
        )
    if kind.needs_gpu and device is not None and device.type != "cuda":
        others = ", ".join(name for name, other in KINDS.items() if not other.needs_gpu)
        raise FeraError(
            f"quantization = {quantization!r} computes on a CUDA device alone, and this run is on {device.type}: "
            f"take one of {others}"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the package around it is missing, or it is blocked
        return False
