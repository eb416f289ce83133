"""Training steps of six families in their real classes at a width of 256; and what reading a caption costs.

`fera` reads what a denoiser is told of a caption off a call of the pipeline, which it stops at the denoiser: beside the
pipeline's own encoding, which does no more than the captions.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    Flux2Transformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)

from benchmarks.contestants import EXPERTS, LORA, RANK, Batch, training_step, with_fera, with_lora
from benchmarks.meters import SECONDS
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.small_wan import save_base
from fera.models import find
from fera.models.families import family_of
from fera.pipelines.base import lay_out

# Heads of 64, and of text as many tokens as a caption of some sentences has.
_HEADS, _HEAD, _TEXT = 4, 64, 77
_WIDTH = _HEADS * _HEAD


def races(setting: Setting) -> Iterator[Race]:
    """A race a family; then seconds and memory of reading a caption."""
    for name, build in FAMILIES.items():
        torch.manual_seed(0)
        base, batch = build(setting)
        targets = find(base).target_modules
        yield Race(
            f"training step, {name}, {_layers(base, targets)} layers, r={RANK}, E={EXPERTS}",
            {
                "fera": training_step(with_fera(base, targets), batch),
                LORA: training_step(with_lora(base, targets=targets), batch),
            },
            [Comparison("fera", LORA, at_most=1.00)],
            rounds=40,
        )
    yield from _reading(setting)


def _reading(setting: Setting) -> Iterator[Race]:
    with TemporaryDirectory() as parent:
        pipe = DiffusionPipeline.from_pretrained(save_base(Path(parent, "base")))
        pipe.to(setting.device)
        family, read, encoded = family_of(pipe), "read off a call", "encode_prompt alone"
        contestants: dict[str, Callable[[], Any]] = {
            read: lambda: family.encode(pipe, ["a red rocket"], setting.device),
            encoded: lambda: pipe.encode_prompt("a red rocket", do_classifier_free_guidance=False),
        }
        for measure, meter in (("seconds", SECONDS), ("peak memory", setting.peak_bytes)):
            yield Race(
                f"a caption of a tiny Wan, {measure}",
                {name: torch.no_grad()(work) for name, work in contestants.items()},
                [Comparison(read, encoded)],
                rounds=20,
                meter=meter,
            )


def _wan(setting: Setting) -> tuple[Any, Batch]:
    frames, side = (3, 16) if not setting.small else (1, 4)
    sizes = {"text_dim": _WIDTH, "freq_dim": 64, "ffn_dim": 4 * _WIDTH, "num_layers": _depth(setting)}
    base = WanTransformer3DModel(num_attention_heads=_HEADS, attention_head_dim=_HEAD, **sizes)
    latent = torch.randn(1, 16, frames, side, side)
    return _made(setting, base, {"hidden_states": latent, "timestep": torch.tensor([500.0])} | _text(), latent.shape)


def _hunyuan_video(setting: Setting) -> tuple[Any, Batch]:
    frames, side = (3, 16) if not setting.small else (1, 4)
    base = HunyuanVideoTransformer3DModel(
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD,
        num_layers=_depth(setting) // 2,
        num_single_layers=_depth(setting),
        num_refiner_layers=1,
        text_embed_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        rope_axes_dim=(16, 24, 24),
    )
    latent = torch.randn(1, 16, frames, side, side)
    told = {
        "hidden_states": latent,
        "timestep": torch.tensor([500.0]),
        "encoder_attention_mask": torch.ones(1, _TEXT),
        "pooled_projections": torch.randn(1, _WIDTH),
        "guidance": torch.tensor([1000.0]),
    }
    return _made(setting, base, told | _text(), latent.shape)


def _ltx(setting: Setting) -> tuple[Any, Batch]:
    frames, side = (3, 8) if not setting.small else (1, 4)
    base = LTXVideoTransformer3DModel(
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD,
        cross_attention_dim=_WIDTH,
        caption_channels=_WIDTH,
        num_layers=_depth(setting),
    )
    latent = torch.randn(1, frames * side * side, 128)
    told = {
        "hidden_states": latent,
        "timestep": torch.tensor([500.0]),
        "encoder_attention_mask": torch.ones(1, _TEXT),
        "num_frames": frames,
        "height": side,
        "width": side,
    }
    return _made(setting, base, told | _text(), latent.shape)


def _qwen_image(setting: Setting) -> tuple[Any, Batch]:
    side = 16 if not setting.small else 4
    base = QwenImageTransformer2DModel(
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD,
        joint_attention_dim=_WIDTH,
        num_layers=_depth(setting),
        axes_dims_rope=(16, 24, 24),
    )
    latent = torch.randn(1, side * side, 64)
    told = {"hidden_states": latent, "timestep": torch.tensor([0.5]), "img_shapes": [[(1, side, side)]]}
    return _made(setting, base, told | _text(), latent.shape)


def _flux2(setting: Setting) -> tuple[Any, Batch]:
    side = 16 if not setting.small else 4
    base = Flux2Transformer2DModel(
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD,
        joint_attention_dim=_WIDTH,
        num_layers=_depth(setting) // 2,
        num_single_layers=_depth(setting),
        axes_dims_rope=(16, 16, 16, 16),
        guidance_embeds=False,
    )
    latent = torch.randn(1, side * side, 128)
    zero, line = torch.zeros(1).long(), torch.arange(side)
    places = torch.cartesian_prod(zero, line, line, zero)
    told = {
        "hidden_states": latent,
        "timestep": torch.tensor([0.5]),
        "img_ids": places[None],
        "txt_ids": torch.zeros(1, _TEXT, 4, dtype=torch.long),
    }
    return _made(setting, base, told | _text(), latent.shape)


def _z_image(setting: Setting) -> tuple[Any, Batch]:
    side = 32 if not setting.small else 8
    base = ZImageTransformer2DModel(
        dim=_WIDTH,
        n_heads=_HEADS,
        n_kv_heads=_HEADS,
        n_layers=_depth(setting),
        n_refiner_layers=1,
        cap_feat_dim=_WIDTH,
        axes_dims=[16, 24, 24],
        axes_lens=[512, 64, 64],
    )
    latent = torch.randn(16, 1, side, side)
    told = {"x": [latent], "t": torch.tensor([0.5]), "cap_feats": [torch.randn(_TEXT, _WIDTH)]}
    return _made(setting, base, told, (1, *latent.shape), lambda answer: torch.stack(list(answer[0])))


FAMILIES: dict[str, Callable[[Setting], tuple[Any, Batch]]] = {
    "Wan": _wan,
    "HunyuanVideo": _hunyuan_video,
    "LTX-Video": _ltx,
    "Qwen-Image": _qwen_image,
    "FLUX.2": _flux2,
    "Z-Image": _z_image,
}


def _depth(setting: Setting) -> int:
    return 2 if setting.small else 4


def _text() -> dict[str, Any]:
    return {"encoder_hidden_states": torch.randn(1, _TEXT, _WIDTH)}


def _layers(base: Any, targets: tuple[str, ...]) -> int:
    """How many layers are adapted."""
    return sum(name.endswith(tuple(f".{target}" for target in targets)) for name, _ in base.named_modules())


def _made(
    setting: Setting, base: Any, told: dict[str, Any], shape: Any, read: Callable[[Any], Any] | None = None
) -> tuple[Any, Batch]:
    """A base, frozen, on its device, and a call of it there in its precision."""

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(one) for one in value]
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(setting.device, setting.dtype if value.is_floating_point() else None)

    inputs = {name: placed(value) for name, value in told.items()}
    target = torch.randn(shape, device=setting.device)
    batch = Batch(inputs, target) if read is None else Batch(inputs, target, read)
    return lay_out(setting.place(base.requires_grad_(False))), batch
