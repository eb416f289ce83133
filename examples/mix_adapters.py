"""Two adapters on one pipeline: each alone, and mixtures of both, in one picture.

fera demo --style openmoji --output runs/openmoji
fera demo --style twemoji --output runs/twemoji
python examples/mix_adapters.py
"""

from diffusers import StableDiffusionPipeline
from PIL import Image

import fera
from fera import demo
from fera.generation import generate, make_grid

PROMPTS = ["red heart", "cat face", "rocket", "pizza"]


def main(steps: int = 24, first: str = "runs/openmoji", second: str = "runs/twemoji") -> Image.Image:
    """Draw a grid: a row for each mixture.

    Args:
        steps: denoising steps.
        first: an adapter for the emoji base.
        second: another.

    Returns:
        The grid, also saved as `mixtures.png`.
    """
    pipe = StableDiffusionPipeline.from_pretrained(demo.base_path())
    fera.load_adapter(pipe, first, adapter_name="first")
    fera.load_adapter(pipe, second, adapter_name="second")
    shares = [1.0, 0.75, 0.5, 0.25, 0.0]
    rows = []
    for share in shares:
        fera.set_adapters(pipe, ["first", "second"], weights=[share, 1 - share])
        rows.append(generate(pipe, PROMPTS, num_inference_steps=steps))
    grid = make_grid(rows, [f"{share:.0%} first, {1 - share:.0%} second" for share in shares], PROMPTS)
    grid.save("mixtures.png")
    return grid


if __name__ == "__main__":
    main()
