"""Which pipelines train, and what is said of those that do not."""

from pathlib import Path

import pytest
from diffusers import (
    StableDiffusionInpaintPipeline,
)
from tiny import make_unet
from trained_cases import CASES

from fera.errors import FeraError
from fera.models.families import FAMILIES, family_of
from models import hunyuan, stable_diffusion

pytest_plugins = ("trained_calls",)


def test_every_family_has_a_case():
    assert {type(case.pipeline()).__name__ for case in CASES} == set(FAMILIES)


def test_other_pipelines_are_refused_by_name():
    with pytest.raises(FeraError, match="cannot train a int yet; it can train: AceStepPipeline, .*StableDiffusionXL"):
        family_of(3)


def test_inpainting_without_a_hole_is_refused():
    components = stable_diffusion.make_inpaint_pipeline().components | {"unet": make_unet()}
    with pytest.raises(FeraError, match="this UNet inpaints by noise alone"):
        family_of(StableDiffusionInpaintPipeline(**components, requires_safety_checker=False))


def test_an_edit_that_is_not_saved_as_it_is_is_refused():
    with pytest.raises(FeraError, match="CosXL Edit is not saved as one"):
        family_of(stable_diffusion.make_xl_edit_pipeline(is_cosxl_edit=True))


def test_a_distilled_transformer_is_refused():
    pipe = hunyuan.make_image_pipeline()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(FeraError, match="HunyuanImage is distilled"):
        family_of(pipe)


def test_the_page_names_every_pipeline():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []
