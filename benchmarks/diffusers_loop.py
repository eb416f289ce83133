"""Training the way that diffusers' text-to-image LoRA script works.

What makes it that way: PEFT's LoRA through `add_adapter`, accelerate, a DataLoader that opens and prepares pictures,
and the autoencoder and the text encoder run at every step, laid out as diffusers loads them (that script does not ask
for channels last). What favours it here: captions are tokenized once, and there is no tracker. The objective is the
emoji base's, flow matching at logit-normal noise levels.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params, compute_density_for_timestep_sampling
from peft import LoraConfig
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.contestants import TARGETS, WIDE
from benchmarks.setting import Setting
from fera.config import OptimizationConfig
from fera.demo import base_path


class Pictures(Dataset):
    """Pictures of an imagefolder and their captions as tokens.

    Args:
        folder: with `metadata.jsonl`.
        tokenizer: of the base.
        resolution: side of the square in pixels.
    """

    def __init__(self, folder: Path, tokenizer, resolution: int) -> None:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        self._paths = [folder / row["file_name"] for row in rows]
        length = tokenizer.model_max_length
        texts = [row["text"] for row in rows]
        tokens = tokenizer(texts, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        self._tokens = tokens.input_ids
        self._resolution = resolution

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1], shape (3, H, W), and tokens, shape (L,)."""
        with Image.open(self._paths[row]) as file:
            image = ImageOps.fit(file.convert("RGB"), (self._resolution, self._resolution), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)
        return pixels / 127.5 - 1, self._tokens[row]


class DiffusersLoop:
    """A run of that kind, held between two steps.

    Args:
        setting: device and precision.
        folder: imagefolder of training pictures.
        batch_size: pictures a step.
        base: folder of the base; the emoji base by default.
    """

    def __init__(self, setting: Setting, folder: Path, batch_size: int, base: Path | None = None) -> None:
        settings = OptimizationConfig()
        pipe = StableDiffusionPipeline.from_pretrained(base or base_path(), safety_checker=None)
        self._vae, self._text_encoder, unet = (
            setting.place(part.requires_grad_(False)) for part in (pipe.vae, pipe.text_encoder, pipe.unet)
        )
        unet.train()
        unet.add_adapter(LoraConfig(r=WIDE, lora_alpha=WIDE, init_lora_weights="gaussian", target_modules=TARGETS))
        cast_training_params(unet, torch.float32)
        self._trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            self._trained,
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.adam_weight_decay,
            eps=settings.adam_epsilon,
        )
        pictures = Pictures(folder, pipe.tokenizer, resolution=self._vae.config.sample_size)
        loader = DataLoader(pictures, batch_size, shuffle=True, drop_last=True)
        schedule = get_scheduler(settings.lr_scheduler, optimizer, num_warmup_steps=settings.lr_warmup_steps)
        self._accelerator = Accelerator(cpu=setting.is_cpu, mixed_precision=setting.mixed_precision)
        self._unet, self._optimizer, self._loader, self._schedule = self._accelerator.prepare(
            unet, optimizer, loader, schedule
        )
        self._max_grad_norm = settings.max_grad_norm
        self._batches = self._endless()
        self.loss = float("nan")

    def advance(self) -> None:
        """One optimizer step."""
        pixels, tokens = next(self._batches)
        with self._accelerator.accumulate(self._unet):
            with torch.no_grad():
                latents = (
                    self._vae.encode(pixels.to(self._vae.dtype)).latent_dist.sample() * self._vae.config.scaling_factor
                )
                text = self._text_encoder(tokens, return_dict=False)[0]
            noise = torch.randn_like(latents)
            sigma = compute_density_for_timestep_sampling("logit_normal", len(latents), 0.0, 1.0, 1.29, latents.device)
            level = sigma.view(-1, 1, 1, 1).to(latents.dtype)
            noisy = (1 - level) * latents + level * noise
            prediction = self._unet(noisy, sigma * 1000, text, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), (noise - latents).float())
            self.loss = self._accelerator.gather(loss.detach().repeat(len(latents))).mean().item()
            self._accelerator.backward(loss)
            if self._accelerator.sync_gradients:
                self._accelerator.clip_grad_norm_(self._trained, self._max_grad_norm)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch after epoch."""
        while True:
            yield from self._loader
