"""A denoising step in ComfyUI: a routed adapter beside ComfyUI's own LoRA that stays unmerged, and the bare model.

ComfyUI is no package: `COMFYUI=.venv/comfyui PYTHONPATH=tests python -m benchmarks comfyui` says where it is, and where
the tests are, which know how to import it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.contestants import EXPERTS, RANK
from benchmarks.full_models import SD15
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from fera.comfyui.adapter import LiveAdapter
from fera.comfyui.experts import Experts
from fera.method.from_settings import new_router, router_input
from fera.method.settings import DEFAULTS

# The same network as ComfyUI describes it.
_UNET: dict[str, Any] = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4]},
    **{"num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1},
    **{"transformer_depth_output": [1] * 9 + [0] * 3, "num_heads": 8, "num_head_channels": -1, "context_dim": 768},
    **{"use_linear_in_transformer": False, "use_spatial_transformer": True, "adm_in_channels": None, "legacy": False},
}
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_FERA, _BYPASS, _BARE = "fera, routed", "ComfyUI's LoRA, unmerged", "the bare model"


def races(setting: Setting) -> Iterator[Race]:
    """Stable Diffusion 1.5 with random weights, one picture of 256 pixels.

    At more pixels what belongs to the step is a smaller part of it, and the layers' part is the same.
    """
    from comfyui_engine import engine

    from fera.comfyui.patching import routed

    comfy = engine()
    narrow = {"model_channels": 32, "context_dim": 32} if setting.small else {}
    config = comfy.supported_models.SD15({**_UNET, **narrow, "dtype": setting.dtype})
    model = comfy.model_base.BaseModel(config, device=setting.device)
    for weight in model.parameters():
        weight.data.normal_(std=0.02)
    adapter = _adapter({"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32} if setting.small else {})
    plain = comfy.model_patcher.ModelPatcher(model, setting.device, setting.device)
    bypass, _ = comfy.sd.load_bypass_lora_for_models(plain, None, _lora(adapter), 1.0, 0.0)
    side = 8 if setting.small else 32
    call = _call(side, model, setting)
    yield Race(
        f"ComfyUI, a step of SD 1.5 at {8 * side} pixels, attention, rank {RANK * EXPERTS}",
        {_FERA: _step(routed(plain, adapter, 1.0), call), _BYPASS: _step(bypass, call), _BARE: _step(plain, call)},
        [Comparison(_FERA, _BYPASS, 1.05), Comparison(_FERA, _BARE, 1.15), Comparison(_BYPASS, _BARE)],
        rounds=8,
        warm_up=1,
    )


def _adapter(narrow: dict[str, Any]) -> LiveAdapter:
    """Experts on the attention of SD 1.5."""
    with torch.device("meta"):
        denoiser = UNet2DConditionModel.from_config(SD15 | narrow)
    rank = RANK * EXPERTS
    layers = {
        name: Experts(torch.randn(rank, layer.in_features) * 0.1, torch.randn(layer.out_features, rank) * 0.01)
        for name, layer in denoiser.named_modules()
        if name.endswith(_ATTENTION)
    }
    settings = DEFAULTS | {"num_experts": EXPERTS}
    return LiveAdapter(
        "benchmark", "UNet2DConditionModel", EXPERTS, router_input(settings), new_router(settings), layers
    )


def _lora(adapter: LiveAdapter) -> dict[str, Tensor]:
    """A LoRA of the same rank on the same layers, under the names that ComfyUI knows."""
    found = {}
    for layer, experts in adapter.layers.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = experts.down, experts.up
    return found


def _call(side: int, model: Any, setting: Setting) -> Callable[[Any], Tensor]:
    width = 32 if setting.small else 768
    place: dict[str, Any] = {"device": setting.device, "dtype": setting.dtype}
    x, context = torch.randn(1, 4, side, side, **place), torch.randn(1, 77, width, **place)
    sigma = torch.full((1,), 3.0, device=setting.device)

    def call(patcher: Any) -> Tensor:
        answer: Tensor = model.apply_model(
            x, sigma, c_crossattn=context, transformer_options={"wrappers": patcher.wrappers}
        )
        return answer

    return call


def _step(patcher: Any, call: Callable[[Any], Tensor]) -> Callable[[], object]:
    @torch.inference_mode()
    def step() -> object:
        patcher.inject_model()  # what the unmerged LoRA puts into the layers; of the others there is nothing
        try:
            return call(patcher)
        finally:
            patcher.eject_model()

    return step
