r"""Experts inside the principal subspaces of the weights that they adapt.

Of each adapted weight the leading directions :math:`U` (out, k) and :math:`V^\top` (k, in) that hold a share of its
energy are the frozen frame. What trains is small and inside, :math:`\tilde A_e` (r, k) and :math:`\tilde B_e` (k, r):

.. math:: B_e A_e = U \, \tilde B_e \, \tilde A_e \, V^\top.

In a forward this is a LoRA, whose matrices are formed from their coordinates at each use; to everything else, files and
exports among it, it is one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.method.subspace import Subspace, principal_subspace

_WEIGHT = "weight"


class SubspaceFactor(nn.Module):
    """A LoRA's down or up matrix by its coordinates in a frozen frame.

    In a state dict it is the matrix itself, as of the layer that it stands for: a file does not depend on the frame.

    Args:
        layer: PEFT's layer of the matrix, linear or a convolution.
        frame: of a down matrix the rows that its rows are made of, shape (k, in); of an up matrix the columns that its
            columns are made of, shape (out, k).
        is_up: which of the two it is.
        coordinates: the coordinates of a down matrix, shape (R, k), or of an up matrix, shape (k, R).
    """

    frame: Tensor

    def __init__(self, layer: nn.Module, frame: Tensor, coordinates: Tensor, *, is_up: bool) -> None:
        super().__init__()
        weight: Any = layer.weight
        self.shape = tuple(weight.shape)
        self.is_up = is_up
        self.coordinates = nn.Parameter(coordinates, requires_grad=weight.requires_grad)
        self.register_buffer("frame", frame, persistent=False)
        # Convolutions compute as PEFT's layer does; in a tuple, for what it holds is no part of this.
        self._layer = (layer,) if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else ()

    @property
    def weight(self) -> Tensor:
        """The matrix, in the shape of the layer's weight."""
        # Past `nn.Module.__getattr__`: in small models its calls are a good part of what this costs.
        coordinates: Any = self._parameters["coordinates"]
        frame: Any = self._buffers["frame"]
        if torch.is_autocast_enabled(coordinates.device.type):
            with torch.autocast(coordinates.device.type, enabled=False):
                return self._formed(coordinates, frame)
        return self._formed(coordinates, frame)

    def _formed(self, coordinates: Tensor, frame: Tensor) -> Tensor:
        if frame.dtype != coordinates.dtype:
            frame = frame.to(coordinates.dtype)
        matrix = torch.mm(frame, coordinates) if self.is_up else torch.mm(coordinates, frame)
        return matrix if len(self.shape) == 2 else matrix.view(self.shape)

    @property
    def bias(self) -> None:
        """It has none."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes with its matrix."""
        if not self._layer:
            return nn.functional.linear(x, self.weight)
        convolution: Any = self._layer[0]
        result: Tensor = convolution._conv_forward(x, self.weight, None)
        return result

    @torch.no_grad()
    def place(self, matrix: Tensor) -> None:
        """Take the coordinates of a matrix, or of what is nearest to it within the frame."""
        frame = self.frame.double()
        flat = matrix.to(self.coordinates.device).flatten(1).double()
        self.coordinates.copy_(frame.T @ flat if self.is_up else flat @ frame.T)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.weight
        destination[prefix + _WEIGHT] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + _WEIGHT
        if key not in state_dict:
            if strict:
                missing_keys.append(key)
            return
        if tuple(state_dict[key].shape) != self.shape:
            error_msgs.append(f"size mismatch for {key}: {tuple(state_dict[key].shape)} instead of {self.shape}")
            return
        self.place(state_dict[key])


def confine(model: nn.Module, adapter_name: str, energy: float) -> None:
    """Confine a fresh adapter's experts to the principal subspaces of their layers.

    Args:
        model: the denoiser, with the adapter in it.
        adapter_name: the adapter; its down matrices are drawn anew, its up matrices are 0.
        energy: share of the energy that the subspaces hold, in (0, 1].

    Raises:
        FeraError: a layer's weight cannot be taken apart.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, LoraLayer) or adapter_name not in module.lora_A:
            continue
        base: Any = module.get_base_layer()
        subspace = _subspace_of(base, name, energy)
        down: Any = module.lora_A[adapter_name]
        up: Any = module.lora_B[adapter_name]
        dtype = down.weight.dtype
        width, kept = len(down.weight), len(subspace.values)
        device = base.weight.device
        # As PEFT draws the rows of a LoRA, here in the frame's directions.
        coordinates = torch.empty(width, kept, dtype=torch.float32)
        nn.init.kaiming_uniform_(coordinates, a=5**0.5)
        down_frame, up_frame = (part.to(device, torch.float32) for part in (subspace.right, subspace.left))
        module.lora_A[adapter_name] = SubspaceFactor(down, down_frame, coordinates.to(device, dtype), is_up=False)
        zeros = torch.zeros(kept, width, dtype=dtype, device=device)
        module.lora_B[adapter_name] = SubspaceFactor(up, up_frame, zeros, is_up=True)
        for factor in (module.lora_A[adapter_name], module.lora_B[adapter_name]):
            factor.train(base.training)


def _subspace_of(base: Any, name: str, energy: float) -> Subspace:
    weight = getattr(base, "weight", None)
    kind = f"{name}, a {type(base).__name__}"
    if not isinstance(base, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or not isinstance(weight, Tensor):
        raise FeraError(f"{kind}, has no matrix to take apart; leave it out of target_modules, or CERSA out of expert")
    if weight.is_meta or not weight.is_floating_point() or type(weight) not in (Tensor, nn.Parameter):
        raise FeraError(f"{kind}: its weight is quantized or not in memory, so it has no principal directions")
    if getattr(base, "groups", 1) != 1:
        raise FeraError(f"{kind} with groups has no one matrix to take apart; leave it out of target_modules")
    try:
        return principal_subspace(weight, energy)
    except FeraError as error:
        raise FeraError(f"{name}: {error}") from error


def subspace_factors(model: nn.Module) -> Iterator[tuple[str, SubspaceFactor]]:
    """The confined matrices of a denoiser, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, SubspaceFactor):
            yield name, module


def describe_subspaces(model: nn.Module) -> str | None:
    """How many directions the confined layers keep, in a few words; None where there are none."""
    kept = [(factor.frame.shape[0], factor.frame.shape[1]) for _, factor in subspace_factors(model) if not factor.is_up]
    outs = [factor.frame.shape[0] for _, factor in subspace_factors(model) if factor.is_up]
    if not kept:
        return None
    ranks = [k for k, _ in kept]
    shares = [k / min(width, out) for (k, width), out in zip(kept, outs, strict=True)]
    return (
        f"{min(ranks)} to {max(ranks)} directions kept of each of {len(kept)} weights, "
        f"{sum(shares) / len(shares):.0%} of them on average"
    )
