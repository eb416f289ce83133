"""What a machine can refuse in the midst of a run, disk and memory, as messages that say how to go on."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fera.config import TrainConfig
from fera.errors import FeraError

_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
)


@contextmanager
def failures_explained(config: TrainConfig, kept: Callable[[], str]) -> Iterator[None]:
    """Raise what the machine refuses in the block as `FeraError`.

    Args:
        config: the configuration of the run.
        kept: says what the run can go on from.

    Notes on an error are said with it.

    Raises:
        FeraError: the disk is full or cannot be written, or the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        noted = "".join(f"{note}. " for note in getattr(error, "__notes__", ()))
        raise FeraError(f"the memory does not suffice. {noted}{memory_hint(config)}. {kept()}") from error
    except OSError as error:
        if error.errno not in _DISK or error.filename is None:
            raise
        raise FeraError(f"{error.filename} cannot be written or read: {error.strerror}. {kept()}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the accelerator or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    # PyTorch's allocators of the CPU (on Unix, on Windows) and of accelerators without an exception of their own.
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def memory_hint(config: TrainConfig) -> str:
    """Settings that would lower a run's need of memory, the most effective first."""
    train, data, adapter = config.train, config.data, config.adapter
    ways = []
    if train.batch_size > 1:
        ways.append(
            f"lower train.batch_size (it is {train.batch_size}; train.gradient_accumulation_steps makes up for it)"
        )
    if not train.gradient_checkpointing:
        ways.append("set train.gradient_checkpointing = true")
    if train.offload == "none" and not adapter.full:
        ways.append('set train.offload = "blocks"')
    if train.mixed_precision == "no":
        ways.append('set train.mixed_precision = "bf16"')
    ways.append("lower data.resolution" + (f" (it is {data.resolution})" if data.resolution else ""))
    if adapter.full:
        ways.append("train an adapter instead of adapter.full")
    elif adapter.plain is None:
        ways.append(f"lower adapter.r (it is {adapter.r}) or adapter.num_experts (it is {adapter.num_experts})")
    return "In this order: " + "; ".join(ways)
