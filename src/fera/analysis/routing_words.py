"""What the gates and the experts of an analysis say, in sentences."""

from fera.analysis.gates import GatePaths
from fera.analysis.updates import ExpertUpdates
from fera.method.router import COLLAPSE
from fera.traces.plot import band_names

# Gates that deviate from uniform by less than this at every step are hardly routed.
_UNIFORM = 0.02
# An expert whose gate never exceeds this does nothing.
_UNUSED = 0.05
_RELATED = 0.5


def gate_words(paths: GatePaths) -> list[str]:
    """Sentences on one adapter's gates.

    Args:
        paths: the paths of at least one step and picture.
    """
    steps, pictures, experts = paths.gates.shape
    if experts == 1:
        return [f"{paths.adapter}: there is one expert, so there is nothing to route."]
    use = ", ".join(f"expert {e + 1} {share:.2f}" for e, share in enumerate(paths.use.tolist()))
    sentences = [
        f"{paths.adapter}: mean use of the experts over {steps} steps and {pictures} pictures: {use}; entropy of the "
        f"use {paths.use_entropy:.2f}, of a single gate {float(paths.entropy.mean()):.2f} (1: uniform, 0: one expert)."
    ]
    return sentences + _verdict(paths) + _course(paths) + _relation(paths)


def update_words(updates: ExpertUpdates | None) -> list[str]:
    """Sentences on the experts' weight updates.

    Args:
        updates: None where the experts are no LoRAs.
    """
    if updates is None:
        return ["The experts are no LoRAs; their weight updates are not compared."]
    norms, cosines = updates.norms["all"], updates.cosines["all"]
    listed = ", ".join(f"expert {e + 1} {norm:.3g}" for e, norm in enumerate(norms.tolist()))
    sentences = [f"Norms of the experts' weight updates over {sum(updates.layers.values())} layers: {listed}."]
    if not norms.any():
        return [*sentences, "All are zero: the adapter is untrained."]
    experts = len(norms)
    if experts > 1:
        pairs = {(e, f): float(cosines[e, f]) for e in range(experts) for f in range(e)}
        (e, f), value = max(pairs.items(), key=lambda pair: pair[1])
        judgement = (
            "they do nearly the same" if value > 0.9 else "they share much" if value > 0.5 else "they point elsewhere"
        )
        sentences.append(
            f"The most alike are experts {f + 1} and {e + 1}, with cosine similarity {value:.2f}: {judgement}."
        )
    largest = max(updates.layers, key=lambda kind: float(updates.norms[kind].norm()) / updates.layers[kind] ** 0.5)
    sentences.append(f"For the number of layers of its kind, {largest} is changed most.")
    return sentences


def _verdict(paths: GatePaths) -> list[str]:
    mean = paths.gates.mean(dim=1)
    if paths.collapsed is not None:
        held = mean[:, paths.collapsed]
        return [
            f"{paths.adapter}: expert {paths.collapsed + 1} takes {float(held.mean()):.2f} of the gate, and at least "
            f"{float(held.min()):.2f} at every step (the bound is {COLLAPSE}): the router has collapsed."
        ]
    if float((mean - 1 / mean.shape[1]).abs().max()) < _UNIFORM:
        return [
            f"{paths.adapter}: the gate stays within {_UNIFORM} of uniform at every step: the router hardly routes."
        ]
    most = paths.gates.amax(dim=(0, 1)).tolist()
    return [
        f"{paths.adapter}: expert {e + 1} never takes more than {value:.2f} of a gate: it is all but unused."
        for e, value in enumerate(most)
        if value < _UNUSED
    ]


def _course(paths: GatePaths) -> list[str]:
    """Who leads when, and how much of the movement all pictures share."""
    leaders = paths.gates.mean(dim=1).argmax(dim=1).tolist()
    starts = [step for step, leader in enumerate(leaders) if step == 0 or leader != leaders[step - 1]]
    ends = [*(start - 1 for start in starts[1:]), len(leaders) - 1]
    parts = [
        f"expert {leaders[start] + 1} "
        + (f"at step {start + 1}" if start == end else f"from step {start + 1} to {end + 1}")
        for start, end in zip(starts, ends, strict=True)
    ]
    sentences = [f"{paths.adapter}: the largest gate is that of {', of '.join(parts)}."]
    if (shared := paths.shared_motion) is None:
        sentences.append(f"{paths.adapter}: the gate does not move.")
    elif paths.gates.shape[1] > 1:
        sentences.append(
            f"{paths.adapter}: {shared:.0%} of the gate's variance follows the step alone, the same for every picture; "
            f"the rest tells pictures apart."
        )
    return sentences


def _relation(paths: GatePaths) -> list[str]:
    correlation = paths.correlation
    experts, bands = correlation.shape
    names = band_names(bands)
    expert, band = divmod(int(correlation.abs().argmax()), bands)
    value = float(correlation[expert, band])
    if abs(value) < _RELATED:
        return [f"{paths.adapter}: no expert's gate goes with a band's share (no correlation reaches {_RELATED})."]
    parts = []
    for e in range(experts):
        best = int(correlation[e].abs().argmax())
        parts.append(f"expert {e + 1} with the {names[best]} band ({float(correlation[e, best]):+.2f})")
    return [f"{paths.adapter}: strongest correlations of gates with shares: {', '.join(parts)}."]
