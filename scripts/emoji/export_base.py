"""Write the trained base as a diffusers pipeline folder in half precision: `src/fera/demo/base/`.

Works on any checkpoint of `train_base.py`, so that an unfinished run can be looked at.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import sets
import torch
from concepts import base_concepts
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from train_base import TextToImage, build_text_encoder, build_unet
from transformers import CLIPTextModel, CLIPTokenizer

CARD = """\
---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
---
# The emoji base

A small latent diffusion model that draws 64x64 emoji from their English names. It was trained from scratch
for the tests, the demo and the studies of fera, where a base has to be real and yet small.

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(path)
pipe("rocket", num_inference_steps=24, guidance_scale={guidance:g}).images[0]
```

| part | class | parameters |
|---|---|---|
{parts}

- **Objective**: flow matching (noise - latent), logit-normal times, {dropout:.0%} of the captions left
  out. The scheduler is a `{scheduler}` with `prediction_type="flow_prediction"`; the
  timestep is 1000 times the share of noise.
- **Latents**: 16x16, 4 channels of mean 0 and deviation 1, so that the scaling factor is 1; but for one that the
  decoder does not use, which is always 0. The encoder's posterior is next to a point: sampling it gives its mean.
- **Training data**: text encoder and UNet saw {concepts} concepts of Noto Emoji, {images:,} pictures in all;
  the autoencoder saw {autoencoder_sets}.
- **Text**: every word of those concepts' names is one token; a word that it has not seen adds nothing.
- **Limits**: it knows those {concepts} names and little else. It composes badly ("a cat in a hat"), knows
  few people, no flags of countries and no symbols, and small details (teeth, letters, clock hands) come out wrong.
- **Licence**: Apache-2.0. Every picture it was trained on is under a licence without share-alike:
  {licences}.
"""


def set_aside_unseen(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    """Zero the embeddings of tokens that no caption has: an unknown word says nothing instead of noise."""
    seen = {token for caption in captions for token in tokenizer(caption).input_ids}
    embedding = text_encoder.get_input_embeddings().weight
    unseen = [token for token in range(len(embedding)) if token not in seen]
    with torch.no_grad():
        embedding[unseen] = 0


def silence_posterior(vae: AutoencoderKL) -> None:
    """Make the encoder's posterior as narrow as the format allows, so that a sample of it is its mean.

    Training drove one channel to say little and to be very unsure of it. The denoiser has learned from means;
    whoever samples the posterior, as most training scripts do, should get the same latents.
    """
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = -20


def load_pipeline(work: Path) -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """Put the last checkpoint's averaged weights into a pipeline.

    Args:
        work: the work folder of the training scripts.

    Returns:
        The pipeline in float32, and facts about the run.
    """
    state = torch.load(work / "base.pt", map_location="cpu", weights_only=True)
    facts = state["facts"] | {key: state[key] for key in ("images", "seconds", "step")}
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text_encoder = build_text_encoder(tokenizer, facts["text_width"], facts["text_layers"])
    unet = build_unet(tuple(facts["channels"]), facts["text_width"], facts["layers"])
    TextToImage(text_encoder, unet).load_state_dict(state["average"])
    set_aside_unseen(text_encoder, tokenizer, state["captions"])
    vae = AutoencoderKL.from_pretrained(work / "vae")
    silence_posterior(vae)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            steps_offset=1,  # no part in flow sigmas, but StableDiffusionPipeline warns of any other value
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, facts


def write_card(pipeline: StableDiffusionPipeline, facts: dict[str, Any], concepts: int) -> str:
    """Write the model card."""
    parts = {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder, "unet": pipeline.unet}
    rows = [
        f"| `{name}` | `{type(part).__name__}` | {sum(p.numel() for p in part.parameters()):,} |"
        for name, part in parts.items()
    ]
    return CARD.format(
        parts="\n".join(rows),
        guidance=3,
        dropout=facts["dropout"],
        scheduler=type(pipeline.scheduler).__name__,
        concepts=concepts,
        images=facts["images"],
        autoencoder_sets=", ".join(entry.name for entry in sets.PERMISSIVE),
        licences=", ".join(f"{entry.name} ({entry.licence}, {entry.author})" for entry in sets.PERMISSIVE),
    )


def export(work: Path, folder: Path) -> Path:
    """Write the folder; readers see the old one or the new one, never half of one.

    Args:
        work: the work folder of the training scripts.
        folder: where the pipeline goes; it is replaced.

    Returns:
        The folder.
    """
    pipeline, facts = load_pipeline(work)
    unfinished = folder.with_name(folder.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.half()
    pipeline.save_pretrained(unfinished)
    # Half precision is for the disk alone. transformers would otherwise load what the file holds.
    config_file = unfinished / "text_encoder" / "config.json"
    config = json.loads(config_file.read_text()) | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    config_file = unfinished / "tokenizer" / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    for key in ("is_local", "local_files_only"):  # how this machine loaded it, which is nobody's business
        config.pop(key, None)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (unfinished / "README.md").write_text(write_card(pipeline, facts, len(base_concepts(work))))
    replaced = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def main() -> None:
    """Export the last checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder")
    parser.add_argument("--output", type=Path, default=Path("src/fera/demo/base"), help="pipeline folder")
    args = parser.parse_args()
    folder = export(args.work, args.output)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
