"""The latent, the timestep and the noise level, read off the calls of a denoiser."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.registry import _SLACK, argument_names, find
from fera.models.rows import Count
from fera.support.tracing import has_values


class CallReader:
    """Finds the latent and the timestep in the calls of one denoiser, positional or by keyword.

    Args:
        denoiser: the model whose calls it reads.

    Raises:
        FeraError: its class is unknown.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._entry = find(denoiser)
        self._names = argument_names(type(denoiser))

    def latent(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The latent of a call, shape (B, C, H, W) or (B, C, L), without the channels of conditions.

        Raises:
            FeraError: the call has no latent.
        """
        arguments = self._arguments(args, kwargs)
        value: Any = arguments.get(self._entry.latent)
        if value is None and self._entry.latent:  # a function finds its own argument
            raise FeraError(
                f"{type(denoiser).__name__} was called without {self._entry.latent!r}, the latent that routes it; "
                f"got {len(args)} positional arguments and the keywords: {', '.join(kwargs) or 'none'}"
            )
        return self._entry.view(denoiser, value, arguments)

    def timestep(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The timestep of a call as it was passed, or None."""
        return self._arguments(args, kwargs).get(self._entry.timestep)

    @property
    def knows_rows(self) -> bool:
        """Whether the class names all layers whose rows are not samples."""
        return self._entry.knows_rows

    def part_of(self, layer: str) -> str | None:
        """What the class knows the rows of a layer by, from the layer's name; None where its rows are samples."""
        return next((part for part in self._entry.rows if f".{part}." in f".{layer}."), None)

    def count_rows(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], parts: Iterable[str]
    ) -> dict[str, Count]:
        """How many rows each sample of a call has in the inputs of layers, by what the class knows their rows by."""
        arguments = self._arguments(args, kwargs)
        return {part: self._entry.rows[part](denoiser, arguments) for part in parts}

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def noise_level(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Tensor) -> Tensor:
        """How noisy a call says that its latent is.

        Args:
            args: the args of the call.
            kwargs: the kwargs of the call.
            like: the latent, shape (B, ...).

        Returns:
            Shape (B,), float32, on the latent's device; 0 for the timestep of a clean latent, 1 for that of pure noise.
            Of several timesteps a sample, one a token, the noisiest.

        Raises:
            FeraError: the call has no timestep, or one that is out of its class's range.
        """
        timestep = self.timestep(args, kwargs)
        if timestep is None:
            raise FeraError(
                f"the router reads the timestep, but the denoiser was called without {self._entry.timestep!r}; pass it"
            )
        clean, noise = self._entry.timestep_range
        timestep = torch.as_tensor(timestep, device=like.device)
        level = (timestep.float() - clean) / (noise - clean)
        level = level.flatten(1).amax(dim=1) if level.ndim > 1 else level.reshape(-1)
        # In training the timesteps are known, and to look at them waits for the device.
        may_look = has_values(level) and (level.is_cpu or not torch.is_grad_enabled())
        if may_look and not ((level >= -_SLACK) & (level <= 1 + _SLACK)).all():
            raise FeraError(
                f"the router reads the timestep, but the denoiser got {timestep.flatten().tolist()[:4]}, which is not "
                f"between {clean:g} (a clean latent) and {noise:g} (pure noise): some schedulers give log(sigma) / 4 "
                "instead. Draw with one that gives timesteps, or with an adapter whose router_input has no timestep"
            )
        count = like.shape[0]
        return level.expand(count) if len(level) in (1, count) else level.repeat_interleave(count // len(level))

    @property
    def takes_log_sigma(self) -> bool:
        """Whether log(sigma) / 4 is what the class's pipelines give as a timestep."""
        return min(self._entry.timestep_range) < 0
