"""What may be kept of a call, and read in it, while something records the call instead of computing it."""

import torch
from torch import Tensor, nn


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that may be read now: it is no fake one, as torch.export and estimates use."""
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return False
    # A device that records its work has not done it yet.
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
