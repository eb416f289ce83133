"""Captions of unequal length for denoisers that have no mask: those of one length at a time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fera.models.family import Conditions

Predict = Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]


def each_length(predict: Predict) -> Predict:
    """A prediction that calls the denoiser once for each length of captions, without their padding.

    Args:
        predict: as `Family.predict`, for captions of one length.

    Returns:
        The same for conditions among which `mask` (B, L) says which states are a caption's own; it is not handed on,
        and the others of L states are cut.
    """

    def split(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        mask = conditions["mask"].bool()
        lengths = mask.sum(dim=1).tolist()
        prediction = torch.empty_like(noisy)
        for length in sorted(set(lengths)):
            rows = [row for row, of_row in enumerate(lengths) if of_row == length]
            own = {
                name: value[rows, :length] if value.shape[1:2] == mask.shape[1:] else value[rows]
                for name, value in conditions.items()
                if name != "mask"
            }
            if len(rows) == len(noisy):
                return predict(denoiser, noisy, timesteps, own)
            part = predict(denoiser, noisy[rows], timesteps[rows], own)
            prediction = prediction.to(part.dtype).index_copy(0, torch.tensor(rows, device=noisy.device), part)
        return prediction

    return split
