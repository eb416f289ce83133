"""The denoisers of a pipeline, and which of them an adapter belongs to.

Some pipelines have two (Wan 2.2, Stable Cascade). An adapter says which is its own, `FeraConfig.component`. Adapters of
one name in both are saved as one folder a denoiser, `PATH/transformer` and `PATH/transformer_2`.
"""

import os
from pathlib import Path
from typing import Any

from torch import nn

from fera.adapters.file import AdapterFile, open_adapter
from fera.errors import FeraError
from fera.format import WEIGHTS
from fera.models.components import Target, denoisers
from fera.tuner import FeraConfig
from fera.tuner.fingerprint import check_fingerprint


def open_components(
    target: Target,
    source: str | os.PathLike[str],
    *,
    component: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> dict[str, AdapterFile]:
    """Find the adapters of a pipeline's denoisers and read their settings.

    Args:
        target: the pipeline, a denoiser or a PeftModel.
        source: as `open_adapter` takes it, or a folder with one adapter a denoiser, in folders of their names.
        component: the only denoiser wanted; where there is one adapter it goes there, whatever it says.
        revision: branch, tag or commit, for a Hub id.
        token: access token, for a Hub id.

    Returns:
        By the name of the denoiser: one adapter, or one for each of the target's denoisers that has a folder.

    Raises:
        FeraError: as `open_adapter`; there is no such component; the adapter could belong to several denoisers.
    """
    candidates = denoisers(target)
    if component is not None and component not in candidates:
        raise FeraError(f"no denoiser {component!r} in this pipeline; there are: {', '.join(candidates)}")
    wanted = list(candidates) if component is None else [component]
    folders = (Path(source), Path(source) / "adapter")
    if not any((folder / WEIGHTS).is_file() for folder in folders):
        for folder in folders:
            found = [name for name in wanted if (folder / name / WEIGHTS).is_file()]
            if found:
                return {name: open_adapter(folder / name) for name in found}
    file = open_adapter(source, revision=revision, token=token)
    return {component or _component_of(file.config, candidates): file}


def _component_of(config: FeraConfig, candidates: dict[str, nn.Module]) -> str:
    if config.component in candidates:
        return config.component
    expected = config.base_fingerprint or {}
    fitting = [name for name, module in candidates.items() if expected.get("class") in (None, type(module).__name__)]
    if len(fitting) > 1:
        trained_on = [name for name in fitting if expected and _is_base(candidates[name], expected)]
        if len(trained_on) != 1:
            raise FeraError(
                f"the adapter could belong to any of {', '.join(fitting)} and does not say to which; name it: "
                f"fera.load_adapter(..., component={fitting[0]!r})"
            )
        fitting = trained_on
    # None fits: the check of the base says better why.
    return fitting[0] if fitting else next(iter(candidates))


def _is_base(module: nn.Module, expected: dict[str, Any]) -> bool:
    try:
        check_fingerprint(module, expected)
    except FeraError:
        return False
    return True
