"""The table of denoisers, and reading the latent off their calls.

One entry a class. A pipeline passes the latent by position or by keyword, together with conditions that must not
steer the gate (a mask, a reference image): an entry names the argument and keeps the latent's own channels.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.rows import CountRows

# Attention projections, as in diffusers' training scripts; the second has those of the text stream too.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# Feed-forward layers, likewise, and what blocks of one stream have in their place: trainers' users adapt both.
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
JOINT_FEED_FORWARD = (*FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2")
SINGLE_STREAM = ("proj_mlp", "single_transformer_blocks.*.proj_out")
# What the blocks of a UNet have beside attention and feed-forward layers: docs/evidence.md says what they are worth.
# Not conv_in and conv_out, which are outside of the blocks: worth nothing there, and sd-scripts does not load them.
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj", "proj_in", "proj_out")
# Timesteps of a clean latent and of pure noise.
THOUSAND = (0.0, 1000.0)
FRACTION = (0.0, 1.0)

# How far a timestep may be out of its range, as a part of it: rounding.
_SLACK = 1e-4

View = Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Denoiser:
    """How the denoisers of one class receive their latent.

    Args:
        latent: name of the argument of `forward` that holds it.
        view: (denoiser, that argument, all arguments by name) to the latent, shape (B, C, H, W) or (B, C, L).
        attention: patterns for the ends of its attention layers' names.
        beside: of other layers that are adapted too when a config names none.
        timestep: name of the timestep argument.
        timestep_range: the timesteps of a clean latent and of pure noise, as its pipelines pass them.
        pipelines: diffusers pipelines that a test draws with.
        rows: for layers whose rows are not samples, by a part of their names, how many rows each sample has.
        knows_rows: whether all such layers are known; not of a class that was registered.
    """

    latent: str
    view: View
    attention: tuple[str, ...] = ATTENTION
    beside: tuple[str, ...] = ()
    timestep: str = "timestep"
    timestep_range: tuple[float, float] = THOUSAND
    pipelines: tuple[str, ...] = ()
    rows: Mapping[str, CountRows] = field(default_factory=dict)
    knows_rows: bool = True

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Patterns for the ends of the names of layers that are adapted when a config names none."""
        return (*self.attention, *self.beside)


_DENOISERS: dict[str, Denoiser] = {}


def add(name: str, entry: Denoiser) -> None:
    """Put the entry of a class into the table."""
    _DENOISERS[name] = entry


def known() -> dict[str, Denoiser]:
    """The table, by class name."""
    return dict(_DENOISERS)


def register_denoiser(
    denoiser_class: type[nn.Module],
    *,
    latent: str | Callable[[Mapping[str, Any]], Tensor],
    target_modules: Sequence[str] = ATTENTION,
    timestep: str = "timestep",
    timestep_range: tuple[float, float] = THOUSAND,
) -> None:
    """Teach fera a denoiser class of your own; its subclasses follow it.

    Args:
        denoiser_class: the class.
        latent: name of the argument of its `forward` that holds the latent as (B, C, H, W), or (B, C, L) for
            a latent of one dimension; or a function from the arguments of a call, by name, to it.
        target_modules: layers to adapt when a config names none.
        timestep: name of the timestep argument.
        timestep_range: the timesteps of a clean latent and of pure noise, for routers that read the timestep.

    Raises:
        FeraError: `forward` has no such argument, or the range is empty.
    """
    if timestep_range[0] == timestep_range[1]:
        raise FeraError(f"timestep_range must name two different timesteps, got {timestep_range!r}")
    names = argument_names(denoiser_class)
    if callable(latent):
        function = latent
        add(
            denoiser_class.__name__,
            Denoiser(
                "",
                lambda denoiser, value, arguments: function(arguments),
                tuple(target_modules),
                timestep=timestep,
                timestep_range=timestep_range,
                knows_rows=False,
            ),
        )
        return
    if latent not in names:
        raise FeraError(f"{denoiser_class.__name__}.forward has no argument {latent!r}; it has: {', '.join(names)}")
    entry = Denoiser(
        latent,
        lambda denoiser, value, arguments: value,
        tuple(target_modules),
        timestep=timestep,
        timestep_range=timestep_range,
        knows_rows=False,
    )
    add(denoiser_class.__name__, entry)


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


def argument_names(denoiser_class: type[nn.Module]) -> list[str]:
    """Names of the arguments of a class's `forward`, without `self`."""
    return list(inspect.signature(denoiser_class.forward).parameters)[1:]
