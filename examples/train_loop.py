"""Train a routed adapter in a loop of your own: PEFT gives the model, everything else is plain PyTorch.

`fera train` does this with caching, validation, checkpoints and several devices. This is the core of it, for a flow
matching base: about thirty lines.

    python examples/train_loop.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import get_peft_model
from PIL import Image
from torch import Tensor

from fera import FeraConfig, FrequencyBands, demo, frequency_energy_consistency, start_router


def main(steps: int = 100, output: str = "runs/loop", style: str = "twemoji", batch_size: int = 8) -> list[float]:
    """Fine-tune the emoji base to a style.

    Args:
        steps: optimizer steps.
        output: folder for the adapter.
        style: one of `fera.demo.STYLES`.
        batch_size: pictures a step.

    Returns:
        The loss of each step.
    """
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline.from_pretrained(demo.base_path())
    latents, texts = encode(pipe, style)

    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = FeraConfig(r=4, num_experts=3, num_bands=3, router_input="shares+timestep", target_modules=targets)
    model = get_peft_model(pipe.unet, config)
    model.print_trainable_parameters()
    noisy, sigma, _ = noised(latents)
    start_router(model, noisy, sigma)  # experts for parts of the denoising, from the first step
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    experts = {"params": [parameter for name, parameter in trained if ".fera." not in name]}
    router = {"params": [parameter for name, parameter in trained if ".fera." in name], "lr": 2e-4}
    optimizer = torch.optim.AdamW([experts, router], lr=2e-3)  # a slow router keeps the parts that it starts with
    bands = FrequencyBands(num_bands=3)

    losses = []
    for step in range(steps):
        rows = torch.randint(len(latents), (batch_size,))
        text = texts[rows]
        noisy, sigma, target = noised(latents[rows])
        with torch.no_grad(), model.disable_adapter():
            reference = model(noisy, 1000 * sigma, text).sample
        prediction = model(noisy, 1000 * sigma, text).sample  # routed by `noisy`, without being told
        consistency = frequency_energy_consistency(reference, prediction, target, bands)
        loss = torch.nn.functional.mse_loss(prediction, target) + 0.1 * consistency
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    model.save_pretrained(output)
    return losses


def noised(clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, C, H, W) at random noise levels, these levels (N,), and what the base should predict of them."""
    noise = torch.randn_like(clean)
    sigma = torch.sigmoid(torch.randn(len(clean)))
    return torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1)), sigma, noise - clean


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, style: str) -> tuple[Tensor, Tensor]:
    """Latents (N, C, H, W) and text embeddings (N, L, D) of a style's training pictures."""
    with tempfile.TemporaryDirectory() as folder:
        train = demo.unpack_style(style, folder) / "train"
        rows = [json.loads(line) for line in Path(train, "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        images = np.stack([np.asarray(Image.open(train / row["file_name"]), dtype=np.float32) for row in rows])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    latents = [pipe.vae.encode(batch).latent_dist.mean for batch in pixels.split(16)]
    texts, _ = pipe.encode_prompt([row["text"] for row in rows], "cpu", 1, False)
    return torch.cat(latents) * pipe.vae.config.scaling_factor, texts


if __name__ == "__main__":
    main()
