"""LTX-2: a video and its sound in one denoiser, which the video routes."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from torch import Tensor

from models.case import Case, frames_as_channels
from models.inputs import embeddings, mask, picture

CALL = {
    "prompt_embeds": embeddings(0, 1, 16, 16),
    "prompt_attention_mask": mask(1, 16),
    "negative_prompt_embeds": embeddings(1, 1, 16, 16),
    "negative_prompt_attention_mask": mask(1, 16),
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "audio_guidance_scale": 3.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "height": 64,
    "width": 96,
    "num_frames": 5,
    "output_type": "latent",
}


class FlowMatchScheduler(FlowMatchEulerDiscreteScheduler):
    """The pipeline steps the sound with a copy of the scheduler: a fresh one, so that a test sees the video's alone."""

    def __deepcopy__(self, memo: dict[int, object]) -> FlowMatchEulerDiscreteScheduler:
        """Without what a test has put in the place of `step`."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.config)


def make_transformer(**overrides: object) -> LTX2VideoTransformer3DModel:
    """Video latents of 4 channels, sound latents of 2 channels and 2 bins."""
    torch.manual_seed(0)
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 1,
        "caption_channels": 16,
        "rope_double_precision": False,
        "rope_type": "split",
    }
    return LTX2VideoTransformer3DModel(**settings | overrides).eval()


def make_connectors(**overrides: object) -> LTX2TextConnectors:
    """Of a text encoder 16 wide, of which one layer is read."""
    settings = {
        "caption_channels": 16,
        "text_proj_in_factor": 1,
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 8,
        "video_connector_num_layers": 1,
        "video_connector_num_learnable_registers": None,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 8,
        "audio_connector_num_layers": 1,
        "audio_connector_num_learnable_registers": None,
        "connector_rope_base_seq_len": 32,
        "rope_double_precision": False,
        "rope_type": "split",
    }
    torch.manual_seed(2)
    return LTX2TextConnectors(**settings | overrides).eval()


def make_pipeline(pipeline: Any = LTX2Pipeline) -> Any:
    """Text to video and sound, from embeddings in place of words."""
    torch.manual_seed(1)
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        spatial_compression_ratio=8,
        temporal_compression_ratio=2,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8, resolution=32
    )
    return pipeline(
        scheduler=FlowMatchScheduler(),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        text_encoder=None,
        tokenizer=None,
        connectors=make_connectors(),
        transformer=make_transformer(),
        vocoder=None,
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, then frames as channels."""
    height, width = (CALL[name] // pipe.vae_spatial_compression_ratio for name in ("height", "width"))
    frames = (CALL["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
    return pipe._unpack_latents(latents, frames, height, width).flatten(1, 2)


CASES = [
    Case("ltx2", make_pipeline, CALL, {"prompt_embeds": embeddings(2, 1, 16, 16)}, unpack, copies=2),
    Case(
        "ltx2-i2v",
        lambda: make_pipeline(LTX2ImageToVideoPipeline),
        CALL | {"image": picture(0, 64, 96), "image_crf": 0},
        {"image": picture(1, 64, 96)},
        frames_as_channels,  # its scheduler gets unpacked frames, without the given one
        copies=2,
    ),
]
