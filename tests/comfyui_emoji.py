"""The emoji base in ComfyUI."""

from typing import Any

import torch
from comfyui_engine import engine
from torch import Tensor, nn


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
