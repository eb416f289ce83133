"""What the processes of a run tell each other."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn


def agree(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process raises its flag. All processes call it together.

    Args:
        accelerator: the accelerator of the run.
        flag: the flag of this process.
    """
    if accelerator.num_processes == 1:
        return flag
    flags = accelerator.gather(torch.tensor([int(flag)], device=accelerator.device))
    return bool(flags.any())


def of_all_processes(accelerator: Accelerator, names: Sequence[str]) -> list[str]:
    """Names that the processes have, in their order. All processes call it together."""
    if accelerator.num_processes == 1:
        return list(names)
    return [name for some in gather_object([list(names)]) for name in some]


def rows_of_all_processes(tensor: Tensor) -> Tensor:
    """Rows that the processes have, in their order, shape (B, …) on the CPU. All processes call it together."""
    # As objects: batches of different buckets differ in length.
    return torch.cat(gather_object([tensor.cpu()]))


def share_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over the processes, for parameters that no wrapper of a model does it for."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
