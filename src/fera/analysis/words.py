"""What the numbers of an analysis say, in sentences: energies and reconstructions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fera.analysis.energies import Energies, spread
from fera.analysis.reconstruction import relative_error
from fera.traces.plot import band_names

# Shares that change less than this over a drawing are not worth a sentence about their course.
_FLAT = 0.02
_TITLES = {"latent": "latent", "clean": "predicted clean latent", "prediction": "prediction"}


def energy_words(models: Sequence[Energies]) -> list[str]:
    """Sentences on how energies move along the denoising steps.

    Args:
        models: the base first, then the adapted one, of the same prompts and steps; or either alone.
    """
    sentences = [_course(entry, signal) for entry in models for signal in _TITLES]
    if len(models) > 1:
        sentences += [_difference(models[0], models[1], signal) for signal in ("clean", "latent")]
    return sentences


def reconstruction_words(models: Sequence[Energies]) -> list[str]:
    """Sentences on which bands are recovered from which noise levels.

    Args:
        models: as in `energy_words`, of the same pictures and noise levels.
    """
    sentences = []
    for entry in models:
        errors = relative_error(entry)
        parts = []
        for band, name in enumerate(band_names(errors.shape[1])):
            first = _stays_below(errors[:, band], 0.5)
            parts.append(
                f"the {name} band at no level"
                if first is None
                else f"the {name} band from t = {entry.timesteps[first]:.0f} down"
            )
        sentences.append(
            f"{entry.model}: one prediction recovers at least half of a band's energy (its error is below half of it): "
            + ", ".join(parts)
            + "."
        )
    if len(models) > 1:
        sentences += _error_difference(models[0], models[1])
    return sentences


def _course(entry: Energies, signal: str) -> str:
    shares = spread(entry.shares(signal))
    names = band_names(shares.mean.shape[1])
    what = f"{entry.model}: in the {_TITLES[signal]}"
    change = (shares.mean[-1] - shares.mean[0]).tolist()
    moved = max(range(len(names)), key=lambda band: abs(change[band]))
    if len(entry.timesteps) < 2 or abs(change[moved]) < _FLAT:
        listed = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares.mean[-1].tolist(), strict=True))
        return f"{what}, no band's share changes by {_FLAT} from the first step to the last ({listed})."
    low, band = shares.mean[:, 0], shares.mean[:, moved]
    verb = "rises" if change[moved] > 0 else "falls"
    text = (
        f"{what}, the {names[moved]} band's share {verb} from {_number(band[0])} at the first step to "
        f"{_number(band[-1])} at the last"
    )
    if moved != 0:
        text += f" (the low band's goes from {_number(low[0])} to {_number(low[-1])})"
    half = _half_way(band)
    text += f"; half of the change has happened by step {half + 1} of {len(entry.timesteps)}"
    if entry.signals[signal].shape[1] > 1:
        widest = int(shares.std[:, moved].argmax())
        text += (
            f"; pictures differ most at step {widest + 1} "
            f"(deviation {_number(shares.std[widest, moved])}, {_number(shares.low[widest, moved])} to "
            f"{_number(shares.high[widest, moved])} between the 10th and the 90th percentile)"
        )
    return text + "."


def _difference(base: Energies, adapted: Energies, signal: str) -> str:
    """Where the adapter changes most energy, picture by picture."""
    changes = adapted.signals[signal] - base.signals[signal]
    names = band_names(changes.shape[2])
    mean = changes.mean(dim=1)
    step, band = divmod(int(mean.abs().argmax()), len(names))
    value = float(mean[step, band])
    what = f"{adapted.model} against base: in the {_TITLES[signal]}"
    if value == 0:
        return f"{what}, no energy changes at all."
    before, after = (float(entry.signals[signal][step, :, band].mean()) for entry in (base, adapted))
    agree = int((changes[step, :, band].sign() == (1 if value > 0 else -1)).sum())
    totals = mean.abs().sum(dim=0)
    parts = ", ".join(
        f"{name} {share:.0%}" for name, share in zip(names, (totals / totals.sum()).tolist(), strict=True)
    )
    return (
        f"{what}, the adapter moves most energy in the {names[band]} band, at step {step + 1} "
        f"(timestep {adapted.timesteps[step]:.0f}): {before:.3g} becomes {after:.3g}, {_percent(before, after)}, "
        f"in {agree} of {changes.shape[1]} pictures in this direction. Over all steps its changes "
        f"fall to the bands: {parts}."
    )


def _error_difference(base: Energies, adapted: Energies) -> list[str]:
    before, after = relative_error(base), relative_error(adapted)
    names = band_names(before.shape[1])
    step, band = divmod(int((after - before).abs().argmax()), len(names))
    text = (
        f"{adapted.model} against base: its error changes most in the {names[band]} band at timestep "
        f"{adapted.timesteps[step]:.0f}, from {before[step, band]:.2f} to {after[step, band]:.2f} of the band's energy."
    )
    parts = []
    for index, name in enumerate(names):
        errors = [entry.signals["error"][:, :, index].mean() for entry in (base, adapted)]
        parts.append(f"{name} {_percent(float(errors[0]), float(errors[1]))}")
    return [text, f"{adapted.model} against base: error energy over all noise levels: {', '.join(parts)}."]


def _half_way(values: Tensor) -> int:
    """The first step at which half of the change from the first to the last has happened."""
    reached = (values - values[0]).abs() >= (values[-1] - values[0]).abs() / 2
    same_way = (values - values[0]).sign() == (values[-1] - values[0]).sign()
    return int((reached & same_way).long().argmax())


def _stays_below(values: Tensor, bound: float) -> int | None:
    """The first place from which all values are below a bound."""
    above = torch.nonzero(values >= bound).flatten()
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(values) else None


def _number(value: Tensor) -> str:
    return f"{float(value):.2f}"


def _percent(before: float, after: float) -> str:
    return f"{(after / before - 1) * 100:+.0f} %" if before > 0 else "from nothing"
