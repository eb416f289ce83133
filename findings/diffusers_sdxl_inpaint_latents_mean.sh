#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0): SDXL's inpainting pipeline normalises latents on their way out only.
#
# Expected: with a mask of zeros, "keep everything", StableDiffusionXLInpaintPipeline returns the picture as the VAE
# encodes and decodes it, for every VAE.
#
# What happens: for a VAE with latents_mean and latents_std in its config (Playground v2.5's is one), decoding undoes
# (latents - mean) * scaling_factor / std, but encoding did latents * scaling_factor. What is to be kept comes back as
# another picture. StableDiffusionXLImg2ImgPipeline does both ways right. Without mean and std there is no difference.
#
# Output:
#   no mean and std: the kept picture differs from the VAE's round trip by up to 0.00000
#   with latents_mean and latents_std: by up to 0.76032

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 \
    safetensors==0.8.0 numpy==2.4.6 pillow==13.0.0
cd "$folder"
export TRANSFORMERS_VERBOSITY=error
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline, UNet2DConditionModel
from diffusers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()


def kept(**normalisation):
    """The largest difference, of a range of 1, between the VAE's own round trip and a picture of which all is kept."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5, force_upcast=False, **normalisation,
    ).eval()
    # The posterior's variance is next to nothing, so that encoding gives its mean.
    vae.quant_conv.weight.data[4:] = 0
    vae.quant_conv.bias.data[4:] = -30
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), addition_embed_type="text_time",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    pipe = StableDiffusionXLInpaintPipeline(
        vae=vae, unet=unet.eval(), scheduler=EulerDiscreteScheduler(), text_encoder=None, text_encoder_2=None,
        tokenizer=None, tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.manual_seed(1)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    result = pipe(
        prompt_embeds=torch.randn(1, 3, 32, generator=generator), guidance_scale=1.0, num_inference_steps=2,
        pooled_prompt_embeds=torch.randn(1, 32, generator=generator), image=image, mask_image=torch.zeros(1, 1, 16, 16),
        strength=1.0, height=16, width=16, output_type="pt", generator=generator,
    ).images
    with torch.no_grad():
        wanted = vae.decode(vae.encode(2 * image - 1).latent_dist.mean).sample
    return float((result - (wanted / 2 + 0.5).clamp(0, 1)).abs().max())


without = kept()
# About as large as Playground v2.5's.
normalised = kept(latents_mean=[-1.6, 1.2, -0.3, 0.8], latents_std=[8.4, 5.9, 9.4, 7.3])
print(f"no mean and std: the kept picture differs from the VAE's round trip by up to {without:.5f}")
print(f"with latents_mean and latents_std: by up to {normalised:.5f}")

assert without < 1e-4 and normalised > 0.1, "not as the header says"
PY
