"""Pictures of all methods side by side: the same prompts from the same noise.

What is shown is chosen by a rule: of each style the first seed that most methods have, and the first prompts by a hash
of their words. Nobody picks the pictures.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fera.comparison.data import test_folder
from fera.comparison.results import Result
from fera.comparison.study import Study
from fera.config import DataConfig
from fera.data.checking import find_examples
from fera.data.images import load_image
from fera.errors import FeraError
from fera.generation import prompt_grid

_PROMPTS = 8


def write_sheets(study: Study, results: Sequence[Result], output: Path, folder: Path) -> list[str]:
    """Write `pictures-STYLE.png` for each style whose pictures are there.

    Args:
        study: the study.
        results: its finished runs.
        output: the study's folder, which holds the pictures of runs that were made in it.
        folder: gets the sheets.

    Returns:
        Names of the files.

    Raises:
        FeraError: they cannot be written.
    """
    names = []
    for style in study.style_names:
        rows = _rows(study, [result for result in results if result.style == style], output)
        if not rows:
            continue
        prompts = sorted(set.intersection(*(set(pictures) for pictures in rows.values())), key=_order)[:_PROMPTS]
        if not prompts:
            continue
        shown: dict[str, list[Image.Image | None]] = {
            label: [load_image(pictures[prompt]) for prompt in prompts] for label, pictures in rows.items()
        }
        if any(real := _real(study, style, output, prompts)):
            shown["real"] = real
        names.append(f"pictures-{style}.png")
        try:
            prompt_grid(shown, prompts).save(folder / names[-1])
        except OSError as error:
            raise FeraError(f"cannot write to {folder}: {error.strerror or error}") from error
    return names


def _rows(study: Study, results: Sequence[Result], output: Path) -> dict[str, dict[str, Path]]:
    """Of each method the file of each prompt, all of one seed; without methods whose pictures are not there."""
    by_seed: dict[int, dict[str, dict[str, Path]]] = {}
    for result in results:
        place = result.run.folder(output) / "evaluation"
        pictures = {
            one["prompt"]: place / one["file"]
            for one in result.metrics.get("pictures") or []
            if one["repetition"] == 0 and one["file"] and (place / one["file"]).is_file()
        }
        if pictures:
            by_seed.setdefault(result.seed, {})[result.method] = pictures
    if not by_seed:
        return {}
    found = by_seed[max(by_seed, key=lambda seed: (len(by_seed[seed]), -study.seeds.index(seed)))]
    return {study.label(method): found[method] for method in study.methods if method in found}


def _real(study: Study, style: str, output: Path, prompts: Sequence[str]) -> list[Image.Image | None]:
    place = test_folder(study, style, output)
    if not place.is_dir():
        return []
    files = {one.caption: one.image for one in find_examples(place, DataConfig(train_data_dir=place))}
    return [load_image(files[prompt]) if prompt in files else None for prompt in prompts]


def _order(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode()).digest()
