"""Compiling the denoiser for training steps: `train.compile`.

What is measured and drawn along the way runs uncompiled: it would be compiled anew for evaluation, and pictures would
not be, to the bit, those of `fera generate`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.models.components import repeated_blocks
from fera.pipelines.block_offload import is_offloaded

BACKEND = "inductor"
# Each size of pictures by itself: code for any size takes longer than that for several, where it can be written.
_DYNAMIC = False
# Versions of a function that may be compiled. SD 1.5's attention blocks see four sizes in each size of pictures:
# PyTorch's own limit, 8, would leave the third size uncompiled.
VERSIONS = 128


def check_compile(config: TrainConfig) -> None:
    """Refuse what cannot be compiled, before anything is loaded.

    Args:
        config: the configuration of the run.

    Raises:
        FeraError: this PyTorch is too old for it.
    """
    if config.train.compile != "no" and not hasattr(torch.compiler, "set_stance"):
        raise FeraError(f"train.compile needs PyTorch 2.6 or newer, and this is {torch.__version__}")


def compile_denoiser(denoiser: nn.Module, what: str) -> None:
    """Have the calls of a denoiser, or of its blocks, compiled at their first.

    Args:
        denoiser: changed in place; its hooks, which route it, run as ever.
        what: "no", "blocks" or "denoiser".

    Raises:
        FeraError: the denoiser names no blocks.
    """
    if what == "denoiser":
        denoiser.forward = torch.compile(denoiser.forward, backend=BACKEND, dynamic=_DYNAMIC)
    elif what == "blocks":
        names = repeated_blocks(denoiser)
        blocks = [module for module in denoiser.modules() if type(module).__name__ in names]
        if not blocks:
            raise FeraError(
                f'train.compile = "blocks": {type(denoiser).__name__} does not say which blocks it repeats; use '
                '"denoiser"'
            )
        for block in blocks:
            if is_offloaded(denoiser):
                # Without its hooks: weights come and go before and after what is compiled.
                block.forward = torch.compile(block.forward, backend=BACKEND, dynamic=_DYNAMIC)
            else:
                block.compile(backend=BACKEND, dynamic=_DYNAMIC)


def uncompiled(config: TrainConfig) -> AbstractContextManager[Any]:
    """In this context the run's denoiser runs as if it were not compiled."""
    return nullcontext() if config.train.compile == "no" else torch.compiler.set_stance("force_eager")


@contextmanager
def compiling(config: TrainConfig) -> Iterator[None]:
    """In this context the run's denoiser is compiled where it is called in a new way.

    Raises:
        FeraError: the compiler fails.
    """
    if config.train.compile == "no":
        yield
        return
    import torch._dynamo  # takes a second: where it is needed

    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    try:
        with torch._dynamo.config.patch({limit: VERSIONS}):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise FeraError(
            f'PyTorch cannot compile the denoiser here: {reason}. Set train.compile = "no", or mend what it says'
        ) from error
