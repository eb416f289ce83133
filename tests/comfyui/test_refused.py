"""What the node does not know is an error that names layers, and the page says what is proven."""

import copy
import re
from pathlib import Path

import pytest
from comfyui_twins import TWINS
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.patching import routed

pytestmark = pytest.mark.comfyui

PAGE = Path(__file__).parents[2] / "docs" / "comfyui.md"


def test_the_pages_table_is_what_is_tried():
    table = PAGE.read_text("utf-8").partition("## What is proven")[2].partition("An adapter is refused where")[0]
    named = re.findall(r"^\|[^|]+\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted({type(build().denoiser).__name__ for build in TWINS.values()})


def test_layers_without_a_name_in_comfyui(tmp_path):
    """Such as the embedding of the guidance of a base that was distilled, in a model without one."""
    from models.hunyuan_video import make_transformer

    guided = make_transformer(guidance_embeds=True, attention_head_dim=16, rope_axes_dim=(4, 4, 8))
    for targets, said in {
        ("guidance_embedder.linear_1",): "on a HunyuanVideoTransformer3DModel, and none of its 1 layers is in",
        (
            "to_q",
            "guidance_embedder.linear_1",
        ): "1 of the .* layers of ink have no place .*, a HunyuanVideo: time_text_embed.guidance",
    }.items():
        settings = FeraConfig(r=2, target_modules=list(targets))
        fera.save_adapter(fill(inject_adapter_in_model(settings, copy.deepcopy(guided))), tmp_path / "ink")
        with pytest.raises(FeraError, match=said):
            routed(TWINS["hunyuan_video"]().patcher(), read_adapter(tmp_path / "ink"), 1.0)
