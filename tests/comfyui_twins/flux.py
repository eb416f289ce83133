"""FLUX.1, with what Kontext and Fill are given, and FLUX.2."""

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

from fera.models.packing import pack, places, unpack


def flux() -> Twin:
    """FLUX.1's transformer."""
    return _flux(None)


def kontext() -> Twin:
    """FLUX.1 Kontext: a reference's tokens come behind those of the picture."""
    return _flux("reference")


def fill() -> Twin:
    """FLUX.1 Fill: channels of the masked picture and its mask come behind the latent's."""
    return _flux("channels")


def _flux(given: str | None) -> Twin:
    from models.flux import make_transformer

    condition = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    channels = {"channels": 8}.get(given or "", 4)
    denoiser = make_transformer(guidance_embeds=False, in_channels=4 * channels, out_channels=16)
    settings = {
        **{"image_model": "flux", "in_channels": channels, "out_channels": 4, "patch_size": 2, "hidden_size": 32},
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
        tokens, ids = pack(latent), places(height, width, latent)
        if given == "reference":
            behind = ids.clone()
            behind[:, 0] = 1
            tokens, ids = torch.cat([tokens, pack(condition)], dim=1), torch.cat([ids, behind])
        if given == "channels":
            tokens = torch.cat([tokens, pack(condition)], dim=2)
        found = denoiser(
            hidden_states=tokens,
            timestep=level,
            encoder_hidden_states=context,
            pooled_projections=pooled.expand(len(latent), -1),
            img_ids=ids,
            txt_ids=torch.zeros(context.shape[1], 3),
        ).sample
        return unpack(found[:, : height * width], height, width)

    targets = ["to_q", "to_k", "to_v", "add_q_proj", "proj_mlp", "proj_out", "norm_out.linear", "x_embedder"]
    told = {"y": pooled} | ({"ref_latents": [condition]} if given == "reference" else {})
    told |= {"c_concat": condition} if given == "channels" else {}
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 64), told, targets)


# What ComfyUI's map for FLUX leaves out of FLUX.2.
_FLUX2 = {
    "time_guidance_embed.timestep_embedder.linear_1.weight": "time_in.in_layer.weight",
    "time_guidance_embed.timestep_embedder.linear_2.weight": "time_in.out_layer.weight",
    "double_stream_modulation_img.linear.weight": "double_stream_modulation_img.lin.weight",
    "double_stream_modulation_txt.linear.weight": "double_stream_modulation_txt.lin.weight",
    "single_stream_modulation.linear.weight": "single_stream_modulation.lin.weight",
}


def flux2() -> Twin:
    """FLUX.2's transformer: ComfyUI's latent has 2 x 2 pixels an entry."""
    return _flux2(references=0)


def flux2_edit() -> Twin:
    """The same with two references, whose tokens come behind those of the picture, ten apart in time."""
    return _flux2(references=2)


def _flux2(references: int) -> Twin:
    from models.flux2 import make_transformer

    denoiser = make_transformer(guidance_embeds=False, timestep_guidance_channels=256)
    settings = {
        **{"image_model": "flux2", "in_channels": 16, "out_channels": 16, "patch_size": 1, "hidden_size": 32},
        **{"num_heads": 2, "mlp_ratio": 3.0, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 4, 4]},
        **{"theta": 2000, "qkv_bias": False, "guidance_embed": False, "vec_in_dim": None, "context_in_dim": 32},
        **{"mlp_silu_act": True, "global_modulation": True, "ops_bias": False, "txt_ids_dims": [3]},
        **{"default_ref_method": "index", "ref_index_scale": 10.0, "dtype": torch.float32},
    }
    generator = torch.Generator().manual_seed(4)
    given = [torch.randn(1, 16, 8, 8, generator=generator) for _ in range(references)]
    comfy = engine()
    model = comfy.model_base.Flux2(comfy.supported_models.Flux2(dict(settings)), device="cpu")
    copy_weights(denoiser, model, comfy.utils.flux_to_diffusers(settings) | _FLUX2)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        height, width = latent.shape[2:]
        ids = places(height, width, latent)
        ids = torch.cat([ids, torch.zeros(len(ids), 1)], dim=1)
        tokens, all_ids = [latent.flatten(2).transpose(1, 2)], [ids]
        for number, reference in enumerate(given, start=1):
            tokens.append(reference.flatten(2).transpose(1, 2).expand(len(latent), -1, -1))
            all_ids.append(ids + torch.tensor([10.0 * number, 0.0, 0.0, 0.0]))
        text = torch.zeros(context.shape[1], 4)
        text[:, 3] = torch.arange(context.shape[1])
        found = denoiser(
            hidden_states=torch.cat(tokens, dim=1),
            timestep=level,
            encoder_hidden_states=context,
            img_ids=torch.cat(all_ids),
            txt_ids=text,
            guidance=None,
        ).sample[:, : height * width]
        return found.transpose(1, 2).unflatten(2, (height, width))

    told = {"ref_latents": [reference.repeat(2, 1, 1, 1) for reference in given]} if given else {}
    return Twin(denoiser, model, (16, 8, 8), predict, (5, 32), told)
