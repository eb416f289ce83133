"""What came of a run, in words: how it ended, what the held-out loss did, what the router does."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from fera.method.router import COLLAPSE
from fera.report.folder import Run
from fera.report.log import Log, number
from fera.support.durations import in_time
from fera.traces.curves import RoutingCurves

# Mean gate, as a share of equal use, below which an expert is idle.
IDLE = 0.1
# Change of a gate along the denoising steps below which the router hardly tells them apart.
STILL = 0.05


@dataclass(frozen=True)
class Notice:
    """Something the reader should know first.

    Args:
        kind: "bad" for what is wrong, "note" for what is worth a look, "good" for what went well.
        text: in words.
    """

    kind: Literal["good", "note", "bad"]
    text: str


@dataclass(frozen=True)
class Fact:
    """A number at the top of the page.

    Args:
        name: what it is.
        value: with its unit.
        detail: what stands below it.
    """

    name: str
    value: str
    detail: str = ""


def notices(run: Run, curves: Sequence[RoutingCurves]) -> list[Notice]:
    """How the run ended, whether it helped, and whether its router routes."""
    found = [] if run.is_finished else [Notice("bad", _unfinished(run))]
    found.append(_loss_notice(run.held_out()))
    found += _logged_notices(run.log)
    for curve in curves:
        found += _traced_notices(curve)
    return found


def facts(run: Run) -> list[Fact]:
    """The numbers at the top."""
    summary, losses = run.summary, run.held_out()
    found = []
    if losses:
        first, last = losses[0][1], losses[-1][1]
        change = _change(first, last) if len(losses) > 1 and first else ""
        found.append(Fact("held-out loss", f"{last:.4f}", f"{first:.4f} before, {change}" if change else ""))
    total = run.total_steps
    step = total if run.is_finished else run.log.last_step
    if step is not None:
        detail = "" if run.is_finished or total is None else f"of {total:,}"
        samples = number(summary.get("samples"))
        found.append(Fact("steps", f"{step:,}", f"{samples:,.0f} samples" if samples else detail))
    pictures = number(summary.get("training_pictures")) or len(run.pictures.training)
    if pictures:
        skipped = number(summary.get("skipped_pictures"))
        found.append(Fact("training pictures", f"{pictures:,.0f}", f"{skipped:.0f} skipped" if skipped else ""))
    parameters = number(summary.get("parameters")) or number(run.adapter.get("parameters", {}).get("total"))
    if parameters:
        found.append(Fact("trained parameters", f"{parameters:,.0f}"))
    seconds, speed = number(summary.get("training_seconds")), number(summary.get("samples_per_second"))
    if seconds is not None:
        found.append(Fact("training time", in_time(seconds), f"{speed:.3g} samples / s" if speed else ""))
    return found


def _change(first: float, last: float) -> str:
    """Relative change, with a true minus sign."""
    return f"{last / first - 1:+.1%}".replace("-", "\u2212")


def _unfinished(run: Run) -> str:
    total = run.total_steps
    reached = f"It has reached step {run.log.last_step:,}" + (f" of {total:,}" if total is not None else "")
    written = f"; its log was last written {_when(run.log_written)}" if run.log_written else ""
    checkpoint = run.folder.latest_checkpoint()
    advice = (
        f" The newest checkpoint is {checkpoint.name}: fera train {run.folder.config} --resume goes on from it."
        if checkpoint
        else " There is no checkpoint to go on from."
    )
    return f"This run is not finished: it is still going on, was interrupted, or failed. {reached}{written}.{advice}"


def _when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _loss_notice(losses: Sequence[tuple[float, float]]) -> Notice:
    if not losses:
        return Notice("note", "No pictures were held out, so no number says whether it helped: look at the pictures.")
    (_, first), (_, last) = losses[0], losses[-1]
    if len(losses) == 1:
        return Notice("note", f"The held-out loss was measured once: {last:.4f} at step {losses[0][0]:g}.")
    change = f"from {first:.4f} to {last:.4f}" + (f" ({_change(first, last)})" if first else "")
    step, least = min(losses, key=lambda pair: pair[1])
    if last >= first:
        return Notice("bad", f"The held-out loss did not fall: {change}. The adapter does no better than the base.")
    if last > least * 1.01:
        return Notice(
            "note",
            f"The held-out loss fell {change}, but was lower at step {step:g} ({least:.4f}): it trained too long.",
        )
    return Notice("good", f"The held-out loss fell {change}, on pictures that were not trained on.")


def _logged_notices(log: Log) -> list[Notice]:
    if log.num_experts < 2:
        return []
    last = [next((y for _, y in reversed(points) if y is not None), None) for points in log.gate_series()]
    gates = [gate for gate in last if gate is not None]
    if len(gates) != len(last):
        return []
    if max(gates) >= COLLAPSE:
        return [
            Notice(
                "bad",
                f"The router has collapsed: expert {gates.index(max(gates)) + 1} holds {max(gates):.2f} of the gate at "
                "the end of training. The other experts are dead weight. Try a lower train.router_lr_ratio or a "
                "higher adapter.temperature.",
            )
        ]
    idle = [str(expert) for expert, gate in enumerate(gates, start=1) if gate < IDLE / len(gates)]
    if idle:
        names = f"Expert {idle[0]} is" if len(idle) == 1 else f"Experts {', '.join(idle)} are"
        return [Notice("note", f"{names} hardly used: less than a tenth of an equal share of the gate.")]
    return []


def _traced_notices(curves: RoutingCurves) -> list[Notice]:
    experts = list(zip(*curves.gates, strict=True))
    if len(experts) < 2:
        return []
    for number_, gates in enumerate(experts, start=1):
        if min(gates) >= COLLAPSE:
            return [
                Notice(
                    "bad",
                    f"While it draws, expert {number_} holds at least {min(gates):.2f} of the gate at every denoising "
                    "step: the router has collapsed.",
                )
            ]
    change = max(max(gates) - min(gates) for gates in experts)
    if change < STILL:
        return [
            Notice(
                "note",
                f"From noise to picture no gate changes by more than {change:.3f}: the router hardly tells the "
                "denoising steps apart.",
            )
        ]
    return []
