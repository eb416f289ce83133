"""Where the tokens of the picture that is drawn lie, read off position ids."""

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fera.errors import FeraError
from fera.support.tracing import has_values

Place = tuple[int, int, int]

# Places that were read, with the state of the ids and the number of tokens: reading them waits for the device, and most
# pipelines pass the same tensor at every step.
_PLACES = WeakTensorKeyDictionary()


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="the latent's places are read off position ids; use denoiser.compile_repeated_blocks()"
)
def place(denoiser: nn.Module, ids: Tensor, count: int, name: str, drawn: int = 0) -> Place:
    """Of the picture being drawn: its first token, its height and its width in tokens.

    Rows and columns may start anywhere and be any step apart, as centred or scaled ids are.

    Args:
        denoiser: for the error.
        ids: shape (L, 3) or (B, L, 4); rows of text tokens may come before those of the latent.
        count: how many tokens the latent has.
        name: the name of the argument, for the error.
        drawn: first id of the tokens of that picture.

    Raises:
        FeraError: there are not as many ids as tokens, or the tokens with that first id are not one picture, row by
            row.
    """
    # Tensors of inference mode do not count their changes.
    state = None if ids.is_inference() else (ids._version, count, drawn)
    known = _PLACES.get(ids)
    if known is not None and state is not None and known[0] == state:
        found: Place = known[1]
        return found
    if not has_values(ids):
        raise FeraError(
            f"{type(denoiser).__name__}: the values of {name!r} say how the latent lies in its tokens, and this call's "
            "have none, as when a whole denoiser is exported or called with fake tensors. Disable the adapter for it"
        )
    rows = (ids[0] if ids.ndim == 3 else ids).detach()
    if len(rows) != count and (name == "img_ids" or len(rows) < count):
        raise FeraError(
            f"{type(denoiser).__name__}: {name!r} says where {len(rows)} tokens lie, but the latent has {count}; pass "
            "both as the pipeline of this denoiser does"
        )
    read = _read(rows[-count:].cpu().double(), drawn, _rounding(rows))
    if read is None:
        raise FeraError(
            f"{type(denoiser).__name__}: the tokens whose first of {name!r} is {drawn} are not those of one picture, "
            "row by row, so fera cannot see the latent that routes it. Give the tokens of a condition another first "
            "id, and those of the picture the order that the pipeline of this denoiser gives them"
        )
    if state is not None:
        _PLACES[ids] = (state, read)
    return read


def _read(rows: Tensor, image: int, rounding: float) -> Place | None:
    """The place, or None where ids of the form (image, row, column) are not those of one picture, row by row."""
    drawn = rows[:, 0] == image
    total = int(drawn.sum())
    start = int(drawn.long().argmax())
    if not total or not drawn[start : start + total].all():
        return None
    down, across = rows[start : start + total, 1], rows[start : start + total, 2]
    others = (down != down[0]).nonzero()
    width = int(others[0]) if len(others) else total
    if total % width:
        return None
    down, across = down.view(-1, width), across.view(-1, width)
    is_grid = torch.equal(down, down[:, :1].expand_as(down)) and torch.equal(across, across[:1].expand_as(across))
    if not is_grid or not (_is_even(down[:, 0], rounding) and _is_even(across[0], rounding)):
        return None
    return start, total // width, width


def _is_even(line: Tensor, rounding: float) -> bool:
    """Whether numbers rise in equal steps."""
    steps = line.diff()
    slack = 0.0 if torch.equal(line, line.round()) else 2 * rounding * float(line.abs().max())
    return not len(steps) or bool(steps.min() > 0 and steps.max() - steps.min() <= 2 * slack)


def _rounding(ids: Tensor) -> float:
    return torch.finfo(ids.dtype).eps if ids.is_floating_point() else 0.0
