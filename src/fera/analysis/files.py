"""The folder of an analysis: plots, tables, numbers and words."""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fera.analysis.energies import Energies, spread
from fera.analysis.energy_plots import plot_energies, plot_reconstruction
from fera.analysis.gates import GatePaths
from fera.analysis.reconstruction import relative_error
from fera.analysis.routing_plots import plot_gates, plot_updates
from fera.analysis.routing_words import gate_words, update_words
from fera.analysis.tables import save_energies, save_gates_by_picture, save_updates
from fera.analysis.updates import ExpertUpdates
from fera.analysis.words import energy_words, reconstruction_words
from fera.errors import FeraError
from fera.generation import prompt_grid
from fera.support.files import claim_folder
from fera.traces.curves import RoutingCurves, save_csv

FILES = (
    "analysis.json",
    "analysis.md",
    "energies.csv",
    "energies.png",
    "experts-weights.csv",
    "experts-weights.png",
    "experts.png",
    "gates-by-picture.csv",
    "gates.csv",
    "gates.png",
    "reconstruction.csv",
    "reconstruction.png",
)


@dataclass
class Findings:
    """What an analysis found; what was not asked for is empty or None.

    Args:
        settings: how it was made.
        prompts: that were drawn.
        energies: along the denoising steps, the base's first.
        reconstruction: the reconstruction of real pictures, the base's first.
        gates: the gates of the adapter.
        updates: the updates of its experts; None where they are no LoRAs.
        expert_images: by row of the grid, an image a prompt.
    """

    settings: dict[str, Any]
    prompts: list[str] = field(default_factory=list)
    energies: list[Energies] = field(default_factory=list)
    reconstruction: list[Energies] = field(default_factory=list)
    gates: list[GatePaths] = field(default_factory=list)
    updates: ExpertUpdates | None = None
    expert_images: dict[str, list[Image.Image]] = field(default_factory=dict)

    def words(self) -> dict[str, list[str]]:
        """Sentences by heading."""
        words: dict[str, list[str]] = {}
        if self.energies:
            words["Energy along the denoising steps"] = energy_words(self.energies)
        if self.reconstruction:
            words["Reconstruction of pictures"] = reconstruction_words(self.reconstruction)
        if self.gates:
            words["Gates"] = [sentence for paths in self.gates for sentence in gate_words(paths)]
        if "adapter" in self.settings:
            words["Experts"] = update_words(self.updates)
        return words


def claim(folder: Path, *, overwrite: bool) -> None:
    """Make the folder, or refuse where an analysis would be replaced unasked.

    Raises:
        FeraError: it holds an analysis and `overwrite` is off, or it cannot be made.
    """
    claim_folder(folder, [name for name in FILES if (folder / name).exists()], overwrite=overwrite)


def write_findings(findings: Findings, folder: Path) -> list[Path]:
    """Write plots, tables, `analysis.json` and `analysis.md`, all or none; files of an older analysis go.

    Args:
        findings: what was found.
        folder: exists.

    Returns:
        The files, by name.

    Raises:
        FeraError: the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".analysis-") as temporary:
            _write_all(findings, Path(temporary))
            names = sorted(path.name for path in Path(temporary).iterdir())
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            for name in names:
                shutil.move(Path(temporary) / name, folder / name)
    except OSError as error:
        raise FeraError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / name for name in names]


def _write_all(findings: Findings, folder: Path) -> None:
    if findings.energies:
        plot_energies(findings.energies, folder / "energies.png")
        save_energies(findings.energies, folder / "energies.csv")
    if findings.reconstruction:
        plot_reconstruction(findings.reconstruction, folder / "reconstruction.png")
        save_energies(findings.reconstruction, folder / "reconstruction.csv")
    if findings.gates:
        plot_gates(findings.gates, folder / "gates.png")
        save_csv([_curves(paths) for paths in findings.gates], folder / "gates.csv")
        save_gates_by_picture(findings.gates, findings.prompts, folder / "gates-by-picture.csv")
    if findings.expert_images:
        shown = findings.prompts[: len(next(iter(findings.expert_images.values())))]
        prompt_grid(findings.expert_images, shown).save(folder / "experts.png")
    if findings.updates is not None:
        plot_updates(findings.updates, folder / "experts-weights.png")
        save_updates(findings.updates, folder / "experts-weights.csv")
    text = json.dumps(_numbers(findings), indent=1, ensure_ascii=False)
    (folder / "analysis.json").write_text(text + "\n", encoding="utf-8")
    (folder / "analysis.md").write_text(_page(findings, folder), encoding="utf-8")


def _curves(paths: GatePaths) -> RoutingCurves:
    """As `fera generate --trace` writes them, which `fera export` reads."""
    gates, shares = paths.gates, paths.indicator
    return RoutingCurves(
        paths.adapter,
        paths.timesteps,
        gates.mean(dim=1).tolist(),
        gates.std(dim=1, correction=0).tolist(),
        shares.mean(dim=1).tolist(),
        shares.std(dim=1, correction=0).tolist(),
    )


def _numbers(findings: Findings) -> dict[str, Any]:
    numbers: dict[str, Any] = {"settings": findings.settings, "words": findings.words()}
    if findings.energies:
        numbers["energies"] = [_energy_numbers(entry) for entry in findings.energies]
    if findings.reconstruction:
        numbers["reconstruction"] = [
            _energy_numbers(entry) | {"relative_error": relative_error(entry).tolist()}
            for entry in findings.reconstruction
        ]
    if findings.gates:
        numbers["gates"] = [_gate_numbers(paths) for paths in findings.gates]
    if findings.updates is not None:
        updates = findings.updates
        numbers["experts"] = {
            "layers": updates.layers,
            "norms": {kind: norms.tolist() for kind, norms in updates.norms.items()},
            "cosines": {kind: cosines.tolist() for kind, cosines in updates.cosines.items()},
        }
    return numbers


def _energy_numbers(entry: Energies) -> dict[str, Any]:
    signals = {}
    for name, values in entry.signals.items():
        signals[name] = {
            quantity: {key: part.tolist() for key, part in vars(spread(numbers)).items()}
            for quantity, numbers in (("energy", values), ("share", entry.shares(name)))
        }
    return {"model": entry.model, "timesteps": entry.timesteps, "signals": signals}


def _gate_numbers(paths: GatePaths) -> dict[str, Any]:
    return {
        "adapter": paths.adapter,
        "timesteps": paths.timesteps,
        "use": paths.use.tolist(),
        "use_entropy": paths.use_entropy,
        "entropy": paths.entropy.tolist(),
        "collapsed_expert": None if paths.collapsed is None else paths.collapsed + 1,
        "variance_shared_by_pictures": paths.shared_motion,
        "correlation_with_bands": paths.correlation.tolist(),
    }


def _page(findings: Findings, folder: Path) -> str:
    """The words with the pictures, as Markdown."""
    pictures = {
        "Energy along the denoising steps": ["energies.png"],
        "Reconstruction of pictures": ["reconstruction.png"],
        "Gates": ["gates.png"],
        "Experts": ["experts.png", "experts-weights.png"],
    }
    lines = ["# Analysis", ""]
    for name, value in findings.settings.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        lines.append(f"- {name.replace('_', ' ')}: {shown}")
    for heading, sentences in findings.words().items():
        lines += ["", f"## {heading}", "", *(f"- {sentence}" for sentence in sentences)]
        for name in pictures[heading]:
            if (folder / name).exists():
                lines += ["", f"![{heading}]({name})"]
    return "\n".join(lines) + "\n"
