"""Draw with the emoji base and an adapter in ComfyUI's sampler, and keep the picture of the gates (docs/comfyui.md).

CONTRIBUTING.md has the command.
"""

import sys
from pathlib import Path

import torch
from comfyui_emoji import emoji
from comfyui_engine import engine
from PIL import Image

from fera.comfyui.adapter import read_adapter
from fera.comfyui.nodes import RecordGates, ShowGates
from fera.comfyui.patching import routed

STEPS = 24
PROMPTS = ["camera", "telephone", "red heart", "evergreen tree", "sunglasses", "cherries", "minibus", "growing heart"]


def main(adapter: Path, picture: Path) -> None:
    """Draw eight pictures from one seed each, and plot what the router saw and answered."""
    comfy, cpu = engine(), torch.device("cpu")
    model, pipe = emoji()
    noise = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    patcher, trace = RecordGates().record(routed(patcher, read_adapter(adapter), 1.0))
    conditions = [[text, {}]], [[empty, {}]]
    comfy.sample.sample(
        *(patcher, noise, STEPS, 2.0, "euler", "normal", *conditions, torch.zeros_like(noise)), disable_pbar=True
    )
    pixels = ShowGates().show(trace, {})[0][0]
    Image.fromarray((pixels * 255).round().byte().numpy()).save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
