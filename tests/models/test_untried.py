"""Every pipeline of diffusers with a denoiser that fera knows is drawn with by a test, or listed with the reason."""

import inspect

import diffusers
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines import ModularPipeline

from fera.models.registry import known
from fera.models.table import LIMITED, NOT_SUPPORTED, rows
from fera.models.untried import UNTRIED


def listed(reasons):
    return [name for key in reasons for name in key.split(", ")]


def pipelines():
    """Names of those that diffusers has, as far as what they need is installed, with a known denoiser."""
    found = set()
    for name in dir(diffusers):
        cls = getattr(diffusers, name)
        if not inspect.isclass(cls) or cls in (DiffusionPipeline, ModularPipeline):
            continue
        if issubclass(cls, DiffusionPipeline):
            stated = " ".join(str(each.annotation) for each in inspect.signature(cls.__init__).parameters.values())
            if any(denoiser in stated for denoiser in known()):
                found.add(name)
        elif issubclass(cls, ModularPipeline):
            found.add(name)  # its parts are known once it is made
    return found


def test_all_are_named():
    drawn = {pipeline for row in rows() for pipeline in row.pipelines}
    untried = [name for names in UNTRIED.values() for name in names]
    reasons = {*listed(NOT_SUPPORTED), *listed(LIMITED)}
    assert len(untried) == len({*untried})
    assert not drawn & {*untried} and not reasons & {*untried}
    assert sorted(pipelines() - drawn - reasons - {*untried}) == []
    assert sorted(name for name in untried if not hasattr(diffusers, name)) == []
