"""Equal sizes: methods marked as matched train as many parameters as the first, the router left out."""

import copy
from dataclasses import dataclass
from pathlib import Path

from fera.comparison.plan import Run, configure
from fera.comparison.running import router_parameters
from fera.comparison.study import Study
from fera.errors import FeraError
from fera.models.components import denoisers
from fera.pipelines.base import load_base
from fera.training.trained.kinds import adapter_of
from fera.training.trained.start_from import open_start

TOLERANCE = 0.02


@dataclass(frozen=True)
class Size:
    """Trained parameters of a method.

    Args:
        parameters: without the router's.
        router: the router's.
    """

    parameters: int
    router: int


def sizes(study: Study, output: Path, styles: dict[str, Path]) -> dict[str, Size]:
    """Trained parameters of each method, counted on the study's base.

    Args:
        study: the study.
        output: its folder.
        styles: folders of its styles.
    """
    pipe = load_base(study.base)
    base = next(iter(denoisers(pipe).values()))
    found = {}
    for method in study.methods:
        run = Run(method, study.style_names[0], study.seeds[0])
        config = configure(study, run, output, styles[run.style], None)
        adapter = config.adapter
        if adapter.kappa == "auto":  # its value changes no shape
            adapter = adapter.model_copy(update={"kappa": 1 / 128})
        denoiser = copy.deepcopy(base)
        adapter_of(adapter, open_start(adapter, pipe)).add(denoiser)
        trained = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
        router = router_parameters(denoiser)
        found[method] = Size(trained - router, router)
    return found


def check_matched(study: Study, output: Path, styles: dict[str, Path]) -> dict[str, Size]:
    """Refuse a study whose matched methods differ in size.

    Returns:
        What `sizes` counts.

    Raises:
        FeraError: a method marked as matched is more than 2 percent off the first one.
    """
    found = sizes(study, output, styles)
    first = next(iter(study.methods))
    wanted = found[first].parameters
    off = [
        f"{name} has {size.parameters:,} ({size.parameters / wanted - 1:+.1%})"
        for name, size in found.items()
        if study.methods[name].matched and abs(size.parameters / wanted - 1) > TOLERANCE
    ]
    if off:
        raise FeraError(
            f"methods marked as matched must train as many parameters as {first}, {wanted:,} without a router, within "
            f"{TOLERANCE:.0%}: {'; '.join(off)}. Change their ranks, or set matched = false and say why in note"
        )
    return found
