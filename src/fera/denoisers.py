"""Which argument of which denoiser is its latent, and how to see it as (B, C, H, W).

One entry a class. A pipeline passes the latent by position or by keyword, together with conditions that must not
steer the gate (a mask, a reference image): an entry names the argument and keeps the latent's own channels.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fera.errors import FeraError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Denoiser:
    """How the denoisers of one class receive their latent.

    Args:
        latent: name of the argument of `forward` that holds it.
        view: (denoiser, that argument, all arguments by name) to the latent, shape (B, C, H, W).
        target_modules: layers to adapt when a config names none.
        timestep: name of the timestep argument, for traces.
    """

    latent: str
    view: Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor]
    target_modules: tuple[str, ...] = ATTENTION
    timestep: str = "timestep"


def own_channels(denoiser: nn.Module, value: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """NCHW latents, to which inpainting and edit variants append the channels of their conditions."""
    config: Any = denoiser.config
    return value[:, : min(config.in_channels, config.out_channels)]


_DENOISERS: dict[str, Denoiser] = {
    "UNet2DConditionModel": Denoiser("sample", own_channels),
    "SD3Transformer2DModel": Denoiser("hidden_states", own_channels),
}


def register_denoiser(
    denoiser_class: type[nn.Module],
    *,
    latent: str,
    view: Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor] | None = None,
    target_modules: Sequence[str] = ATTENTION,
    timestep: str = "timestep",
) -> None:
    """Teach fera a denoiser class of your own; its subclasses follow it.

    Args:
        denoiser_class: the class.
        latent: name of the argument of its `forward` that holds the latent.
        view: (denoiser, that argument, all arguments by name) to the latent, shape (B, C, H, W); the argument
            itself when left out.
        target_modules: layers to adapt when a config names none.
        timestep: name of the timestep argument, for traces.

    Raises:
        FeraError: `forward` has no such argument.
    """
    if latent not in _argument_names(denoiser_class):
        raise FeraError(
            f"{denoiser_class.__name__}.forward has no argument {latent!r}; "
            f"it has: {', '.join(_argument_names(denoiser_class))}"
        )
    view = view or (lambda denoiser, value, arguments: value)
    _DENOISERS[denoiser_class.__name__] = Denoiser(latent, view, tuple(target_modules), timestep)


def find(denoiser: nn.Module) -> Denoiser:
    """The entry of a denoiser's class.

    Raises:
        FeraError: neither the class nor a parent of it is known.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in _DENOISERS:
            return _DENOISERS[cls.__name__]
    name = type(denoiser).__name__
    raise FeraError(
        f"fera does not know which argument of {name} is its latent. Known denoisers: "
        f"{', '.join(sorted(_DENOISERS))}. For a class of your own, call "
        f'fera.register_denoiser({name}, latent="<argument of forward>") first.'
    )


def is_known(module: object) -> bool:
    """Whether a module is of a class of denoisers that fera knows."""
    return any(cls.__name__ in _DENOISERS for cls in type(module).__mro__)


class CallReader:
    """Finds the latent and the timestep in the calls of one denoiser, positional or by keyword.

    Args:
        denoiser: the model whose calls it reads.

    Raises:
        FeraError: its class is unknown.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._entry = find(denoiser)
        self._names = _argument_names(type(denoiser))

    def latent(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The latent of a call, shape (B, C, H, W), without the channels of conditions.

        Raises:
            FeraError: the call has no latent.
        """
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        value = arguments.get(self._entry.latent)
        if value is None:
            raise FeraError(
                f"{type(denoiser).__name__} was called without {self._entry.latent!r}, the latent that routes it; "
                f"got {len(args)} positional arguments and the keywords: {', '.join(kwargs) or 'none'}"
            )
        return self._entry.view(denoiser, value, arguments)

    def timestep(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The timestep of a call as it was passed, or None."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}.get(self._entry.timestep)


def _argument_names(denoiser_class: type[nn.Module]) -> list[str]:
    return list(inspect.signature(denoiser_class.forward).parameters)[1:]
