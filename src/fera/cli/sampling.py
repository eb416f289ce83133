"""Options that the commands share which draw prompts."""

import argparse
from typing import get_args

from fera.config.quantization import Quantization


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Declare how prompts are drawn, and where: names and defaults are those of `fera.generation.drawing.Drawing`."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--seed", type=int, default=0, help="of the first picture, counting up from there (%(default)s)")
    group.add_argument("--steps", type=int, default=24, help="denoising steps (%(default)s)")
    group.add_argument("--guidance-scale", type=float, default=2.0, help="strength of guidance; 1 is off (%(default)s)")
    group.add_argument("--negative-prompt", default="", help="what not to draw")
    group.add_argument("--height", type=int, help="in pixels; the base's own when left out")
    group.add_argument("--width", type=int, help="in pixels; the base's own when left out")
    group.add_argument("--batch-size", type=int, default=8, help="pictures at a time (%(default)s)")
    group.add_argument("--device", help="such as cuda or cpu; the fastest there is when left out")
    group.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the base's weights (%(default)s)"
    )
    group.add_argument(
        "--offload",
        choices=("none", "blocks", "disk"),
        default="none",
        help="where the denoiser's blocks wait for their use: on the device, in host memory, or in the base's files "
        "(%(default)s)",
    )
    group.add_argument(
        "--quantization",
        choices=get_args(Quantization),
        default="none",
        help="how the denoiser's linear layers are held, as in training (%(default)s)",
    )
