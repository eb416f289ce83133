"""What the node does not know is an error that names layers, and the page says what is proven."""

import re
from pathlib import Path

import pytest
import torch
from comfyui_engine import engine
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
    table = PAGE.read_text("utf-8").partition("## What is proven")[2].partition("Both know these too")[0]
    named = re.findall(r"^\|[^|]+\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted({type(build().denoiser).__name__ for build in TWINS.values()})


def test_a_model_whose_layers_have_other_names(tmp_path):
    from models.hunyuan_video import make_transformer

    settings = {
        **{"image_model": "hunyuan_video", "in_channels": 4, "out_channels": 4, "patch_size": [1, 2, 2]},
        **{"hidden_size": 32, "num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "theta": 256},
        **{"axes_dim": [4, 4, 8], "qkv_bias": True, "guidance_embed": False, "vec_in_dim": 32, "context_in_dim": 32},
        **{"meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "byt5": False},
        **{"meanflow_sum": False, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.HunyuanVideo(comfy.supported_models.HunyuanVideo(settings), device="cpu")
    denoiser = inject_adapter_in_model(FeraConfig(r=2), make_transformer(), "default")
    fera.save_adapter(fill(denoiser), tmp_path / "ink")
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(FeraError, match="trained on a HunyuanVideoTransformer3DModel, and none of its .* layers is in"):
        routed(patcher, read_adapter(tmp_path / "ink"), 1.0)
