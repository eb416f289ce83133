"""ComfyUI's own code, from a folder that `make test` fills, and small models of its classes with weights of diffusers'.

The environment variable COMFYUI names the folder: ComfyUI itself in `ComfyUI`, what it imports in `packages`. What it
imports of torchvision and torchaudio, no model here uses; neither has a build for every PyTorch, so stand-ins do.
"""

import copy
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from standins import stand_in_for
from torch import Tensor, nn

from fera.models.packing import pack, places, unpack


def folder() -> Path:
    """Where ComfyUI and what it imports are."""
    return Path(os.environ["COMFYUI"]).resolve()


def prepare() -> None:
    """Make ComfyUI importable."""
    stand_in_for("torchvision", "torchaudio")
    sys.path.append(str(folder() / "packages"))


@cache
def engine() -> Any:
    """ComfyUI's package `comfy`, on the CPU."""
    if "comfy.model_base" in sys.modules:  # in ComfyUI's own process
        return sys.modules["comfy"]
    prepare()
    sys.path[:0] = [str(folder() / "ComfyUI")]
    arguments, sys.argv = sys.argv, ["comfyui", "--cpu", "--disable-all-custom-nodes"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.lora
        import comfy.model_base
        import comfy.model_patcher
        import comfy.sample
        import comfy.samplers
        import comfy.sd
        import comfy.supported_models
        import comfy.utils
    finally:
        sys.argv = arguments
    return comfy


@dataclass(frozen=True)
class Twin:
    """One denoiser in diffusers and in ComfyUI, with the same weights.

    Args:
        denoiser: diffusers'.
        model: ComfyUI's model, which holds its own.
        latent: shape of a latent in ComfyUI, without the batch.
        predict: (denoiser, scaled latent as ComfyUI has it, noise level 0 to 1, context) to the prediction, likewise.
        context: shape of the text states.
        extra: what ComfyUI's model is told besides.
    """

    denoiser: nn.Module
    model: Any
    latent: tuple[int, ...]
    predict: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    context: tuple[int, int]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def patcher(self) -> Any:
        """A fresh patcher of ComfyUI's."""
        device = torch.device("cpu")
        return engine().model_patcher.ModelPatcher(self.model, load_device=device, offload_device=device)


def copy_weights(denoiser: nn.Module, model: Any, names: Mapping[str, Any]) -> None:
    """Give ComfyUI's model the weights of diffusers'.

    Args:
        denoiser: diffusers'.
        model: ComfyUI's.
        names: diffusers' names to ComfyUI's, as its own maps have them: a name, or one with a range and a function.
    """
    own = model.diffusion_model.state_dict()
    left = set(own)
    for name, tensor in denoiser.state_dict().items():
        if name not in names:
            raise AssertionError(f"{name} of {type(denoiser).__name__} has no place in ComfyUI's model")
        key, span, turn = (
            (*names[name], None, None)[:3] if isinstance(names[name], tuple) else (names[name], None, None)
        )
        value = tensor if turn is None else turn(tensor)
        whole = own[key] if span is None else own[key].narrow(*span)
        whole.copy_(value.reshape(whole.shape))
        left.discard(key)
    if left:
        raise AssertionError(f"ComfyUI's model has more: {sorted(left)[:5]}")


def sd15(in_channels: int = 4, dtype: torch.dtype = torch.float32) -> Twin:
    """Stable Diffusion 1.5's UNet; ComfyUI gives it eight heads. That for inpainting takes nine channels.

    Args:
        in_channels: of the UNet.
        dtype: of ComfyUI's weights, which it computes with in float32; diffusers' are what those are.
    """
    from tiny import make_unet

    settings = (
        _UNET
        | {"in_channels": in_channels}
        | {"use_linear_in_transformer": False, "context_dim": 32, "num_heads": 8, "adm_in_channels": None}
    )
    denoiser = make_unet(block_out_channels=(32, 64), norm_num_groups=32, attention_head_dim=8, in_channels=in_channels)
    comfy = engine()
    config = comfy.supported_models.SD15(copy.deepcopy(settings))
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    model = comfy.model_base.BaseModel(config, device="cpu")
    for weight in denoiser.parameters():
        weight.data = weight.data.to(dtype).float()
    copy_weights(denoiser, model, comfy.utils.unet_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, (level * 1000).round(), context).sample

    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32))


def sdxl() -> Twin:
    """SDXL's UNet, which is told sizes and a pooled caption; ComfyUI gives it heads of 64 channels."""
    from tiny import make_unet

    settings = _UNET | {"use_linear_in_transformer": True, "context_dim": 32, "adm_in_channels": 56}
    settings |= {"num_heads": -1, "num_head_channels": 64, "num_classes": "sequential"}
    denoiser = make_unet(
        block_out_channels=(32, 64),
        norm_num_groups=32,
        attention_head_dim=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=56,
    )
    comfy = engine()
    model = comfy.model_base.BaseModel(comfy.supported_models.SDXL(copy.deepcopy(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.unet_to_diffusers(settings))
    pooled = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        told = {"text_embeds": pooled.expand(len(latent), -1), "time_ids": ids.expand(len(latent), -1)}
        return denoiser(latent, (level * 1000).round(), context, added_cond_kwargs=told).sample

    sizes = denoiser.add_time_proj(ids.flatten()).reshape(1, -1)
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), {"y": torch.cat([pooled, sizes], dim=1)})


def sd3() -> Twin:
    """SD3's transformer; ComfyUI's is 64 times as wide as it is deep."""
    from tiny import make_sd3_transformer

    denoiser = make_sd3_transformer(
        patch_size=2, attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128
    )
    settings = {
        **{"in_channels": 4, "out_channels": 4, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": 64},
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
        **{"num_patches": 256, "pos_embed_max_size": 16, "pos_embed_scaling_factor": None, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.SD3(comfy.supported_models.SD3(dict(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.mmdit_to_diffusers(settings))
    pooled = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, context, pooled.expand(len(latent), -1), level * 1000).sample

    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), {"y": pooled})


def flux() -> Twin:
    """FLUX.1's transformer."""
    from models.flux import make_transformer

    denoiser = make_transformer(guidance_embeds=False)
    settings = {
        **{"image_model": "flux", "in_channels": 4, "out_channels": 4, "patch_size": 2, "hidden_size": 32},
        **{"num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 8]},
        **{"theta": 10000, "qkv_bias": True, "guidance_embed": False, "vec_in_dim": 32, "context_in_dim": 64},
        **{"txt_ids_dims": [], "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.Flux(comfy.supported_models.Flux(dict(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.flux_to_diffusers(settings))
    pooled = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2] // 2, latent.shape[3] // 2
        tokens = denoiser(
            hidden_states=pack(latent),
            timestep=level,
            encoder_hidden_states=context,
            pooled_projections=pooled.expand(len(latent), -1),
            img_ids=places(height, width, latent),
            txt_ids=torch.zeros(context.shape[1], 3),
        ).sample
        return unpack(tokens, height, width)

    return Twin(denoiser, model, (4, 16, 16), predict, (5, 64), {"y": pooled})


def flux2() -> Twin:
    """FLUX.2's transformer: ComfyUI's latent has 2 x 2 pixels an entry."""
    from models.flux2 import make_transformer

    denoiser = make_transformer(guidance_embeds=False, timestep_guidance_channels=256)
    settings = {
        **{"image_model": "flux2", "in_channels": 16, "out_channels": 16, "patch_size": 1, "hidden_size": 32},
        **{"num_heads": 2, "mlp_ratio": 3.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 4, 4]},
        **{"theta": 2000, "qkv_bias": False, "guidance_embed": False, "vec_in_dim": None, "context_in_dim": 32},
        **{"mlp_silu_act": True, "global_modulation": True, "ops_bias": False, "txt_ids_dims": [3]},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.Flux2(comfy.supported_models.Flux2(dict(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.flux_to_diffusers(settings) | _FLUX2)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2:]
        ids = places(height, width, latent)
        ids = torch.cat([ids, torch.zeros(len(ids), 1)], dim=1)
        text = torch.zeros(context.shape[1], 4)
        text[:, 3] = torch.arange(context.shape[1])
        tokens = denoiser(
            hidden_states=latent.flatten(2).transpose(1, 2),
            timestep=level,
            encoder_hidden_states=context,
            img_ids=ids,
            txt_ids=text,
            guidance=None,
        ).sample
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    return Twin(denoiser, model, (16, 8, 8), predict, (5, 32))


def qwen_image() -> Twin:
    """Qwen-Image's transformer: the same names, and a frame axis."""
    from models.qwen_image import make_transformer

    denoiser = make_transformer()
    config = denoiser.config
    settings = {
        **{"image_model": "qwen_image", "in_channels": config.in_channels, "out_channels": config.out_channels},
        **{"patch_size": 2, "num_layers": config.num_layers, "attention_head_dim": config.attention_head_dim},
        **{"num_attention_heads": config.num_attention_heads, "joint_attention_dim": config.joint_attention_dim},
        **{"axes_dims_rope": config.axes_dims_rope, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.QwenImage(comfy.supported_models.QwenImage(dict(settings)), device="cpu")
    copy_weights(denoiser, model, {name: name for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[3] // 2, latent.shape[4] // 2
        tokens = denoiser(
            hidden_states=pack(latent[:, :, 0]),
            timestep=level,
            encoder_hidden_states=context,
            encoder_hidden_states_mask=torch.ones(context.shape[:2], dtype=torch.long),
            img_shapes=[[(1, height, width)]] * len(latent),
        ).sample
        return unpack(tokens, height, width)[:, :, None]

    return Twin(denoiser, model, (config.out_channels, 1, 16, 16), predict, (5, config.joint_attention_dim))


def wan() -> Twin:
    """Wan 2.1's transformer, on five frames."""
    from models.wan import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16},
        **{"dim": 24, "ffn_dim": 32, "freq_dim": 32, "text_dim": 64, "num_heads": 2, "num_layers": 1},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_T2V(dict(settings)), device="cpu")
    copy_weights(denoiser, model, {name: _of_wan(name) for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, level * 1000, context).sample

    return Twin(denoiser, model, (16, 5, 8, 8), predict, (5, 64))


def z_image() -> Twin:
    """Z-Image's transformer, whose velocity runs the other way."""
    from models.z_image import make_transformer

    denoiser = make_transformer()
    settings = {
        **{
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 4,
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
        },
        **{"n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32, "axes_dims": [4, 4, 8], "axes_lens": [256, 64, 64]},
        **{"qk_norm": True, "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "multiple_of": 1},
        **{"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.Lumina2(comfy.supported_models.ZImage(dict(settings)), device="cpu")
    # As wide as in the real model, whatever the width of the rest.
    model.diffusion_model.t_embedder.mlp[0] = nn.Linear(256, 1024)
    model.diffusion_model.t_embedder.mlp[2] = nn.Linear(1024, 32)
    copy_weights(denoiser, model, comfy.utils.z_image_to_diffusers(settings))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        found = denoiser(list(latent[:, :, None]), 1 - level, list(context), return_dict=False)[0]
        return -torch.stack(list(found)).squeeze(2)

    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), {"num_tokens": 5, "attention_mask": None})


def lumina2() -> Twin:
    """Lumina-Image 2's transformer: grouped heads, whose queries, keys and values are one layer in ComfyUI."""
    from models.lumina2 import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "lumina2", "patch_size": 2, "in_channels": 4, "dim": 32, "n_layers": 1},
        **{"n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "cap_feat_dim": 32, "axes_dims": [4, 4, 8]},
        **{"axes_lens": [64, 64, 64], "qk_norm": True, "multiple_of": 16, "rope_theta": 10000.0},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.Lumina2(comfy.supported_models.Lumina2(dict(settings)), device="cpu")
    copy_weights(denoiser, model, {name: _of_lumina2(name, tensor) for name, tensor in denoiser.state_dict().items()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        told = torch.ones(context.shape[:2], dtype=torch.long)
        return -denoiser(latent, 1 - level, context, told, return_dict=False)[0]

    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), {"num_tokens": 5, "attention_mask": None})


_UNET: dict[str, Any] = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2]},
    **{"num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]},
    **{"transformer_depth_middle": 1, "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False},
    "dtype": torch.float32,
}

# What ComfyUI's map for FLUX leaves out of FLUX.2.
_FLUX2 = {
    "time_guidance_embed.timestep_embedder.linear_1.weight": "time_in.in_layer.weight",
    "time_guidance_embed.timestep_embedder.linear_2.weight": "time_in.out_layer.weight",
    "double_stream_modulation_img.linear.weight": "double_stream_modulation_img.lin.weight",
    "double_stream_modulation_txt.linear.weight": "double_stream_modulation_txt.lin.weight",
    "single_stream_modulation.linear.weight": "single_stream_modulation.lin.weight",
}


def _of_wan(name: str) -> str:
    """The original name of a weight of Wan's."""
    for old, new in {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        ".attn1.": ".self_attn.",
        ".attn2.": ".cross_attn.",
        ".to_q.": ".q.",
        ".to_k.": ".k.",
        ".to_v.": ".v.",
        ".to_out.0.": ".o.",
        ".ffn.net.0.proj.": ".ffn.0.",
        ".ffn.net.2.": ".ffn.2.",
        ".norm2.": ".norm3.",
        ".scale_shift_table": ".modulation",
    }.items():
        name = name.replace(old, new)
    return {"scale_shift_table": "head.modulation"}.get(name, name.replace("proj_out.", "head.head."))


def _of_lumina2(name: str, tensor: Tensor) -> Any:
    """The original name of a weight of Lumina-Image 2's, with its range where it is a part of another."""
    for part, start in (("q", 0), ("k", 32), ("v", 48)):
        if f".attn.to_{part}." in name:
            return name.replace(f".attn.to_{part}.", ".attention.qkv."), (0, start, len(tensor)), None
    for old, new in {
        "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_caption_embed.caption_embedder.": "cap_embedder.",
        ".attn.norm_q.": ".attention.q_norm.",
        ".attn.norm_k.": ".attention.k_norm.",
        ".attn.to_out.0.": ".attention.out.",
        ".feed_forward.linear_": ".feed_forward.w",
        ".norm1.norm.": ".attention_norm1.",
        ".norm1.linear.": ".adaLN_modulation.1.",
        ".norm1.": ".attention_norm1.",
        ".norm2.": ".attention_norm2.",
        "norm_out.linear_1.": "final_layer.adaLN_modulation.1.",
        "norm_out.linear_2.": "final_layer.linear.",
    }.items():
        name = name.replace(old, new)
    return name


TWINS: dict[str, Callable[[], Twin]] = {
    "sd15": sd15,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "qwen_image": qwen_image,
    "wan": wan,
    "z_image": z_image,
    "lumina2": lumina2,
}


def emoji() -> tuple[Any, Any]:
    """The emoji base in ComfyUI: a model whose denoiser is diffusers' UNet itself, and its pipeline.

    ComfyUI's own UNet has other groups in its norms and no embedding of a pooled caption.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

    import fera

    class Denoiser(UNet2DConditionModel):
        """Called as ComfyUI calls a denoiser."""

        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **others: Any) -> Tensor:
            return super().forward(x, timesteps, context).sample

    class Euler(FlowMatchEulerDiscreteScheduler):
        """With what a pipeline of Stable Diffusion asks of its scheduler besides."""

        init_noise_sigma = 1.0

        def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
            return sample

    pipe = StableDiffusionPipeline.from_pretrained(fera.demo.base_path())
    pipe.scheduler = Euler()
    pipe.set_progress_bar_config(disable=True)
    denoiser = Denoiser.from_pretrained(fera.demo.base_path(), subfolder="unet")
    return _flow_model(denoiser.eval().requires_grad_(False)), pipe


def self_routing(unet: nn.Module) -> Any:
    """A patcher of ComfyUI's whose denoiser is diffusers' UNet, called as diffusers' pipelines do.

    What fera has put into it routes itself there, whatever ComfyUI's samplers ask of it.
    """

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet
            self.dtype = torch.float32

        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **others: Any) -> Tensor:
            answer: Tensor = self.unet(x, timesteps, context).sample
            return answer

    device = torch.device("cpu")
    return engine().model_patcher.ModelPatcher(_flow_model(Denoiser()), load_device=device, offload_device=device)


def _flow_model(denoiser: nn.Module) -> Any:
    comfy = engine()
    config = comfy.supported_models.SD15({"disable_unet_model_creation": True, "dtype": torch.float32})
    config.latent_format = comfy.latent_formats.LatentFormat()
    config.sampling_settings = {"shift": 1.0}
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW, device="cpu")
    model.diffusion_model = denoiser
    return model
