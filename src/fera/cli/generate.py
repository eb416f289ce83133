"""`fera generate`."""

import argparse
from pathlib import Path

from fera.cli.sampling import add_sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw; one picture each")
    parser.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line; empty lines are skipped"
    )
    parser.add_argument(
        "--base", help='diffusers pipeline: a folder, a Hub id, or "emoji"; the one the adapter names when left out'
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        dest="adapters",
        metavar="PATH[=WEIGHT]",
        help="adapter folder, run folder, safetensors file or Hub id, and its weight (1), or several such as 0:1:0.5, "
        "spread over the denoising steps; give it again for more",
    )
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        dest="gates",
        metavar="GATE",
        help='"routed", "uniform", or weights of the experts such as 0.2,0.3,0.5 in place of the router\'s; once for '
        "each adapter, in order",
    )
    parser.add_argument(
        "--experts",
        action="append",
        default=[],
        metavar="FACTORS",
        help='"all", or a factor for the gate of each expert: 0,1,0 is the second alone, 1,0,1 mutes it; likewise',
    )
    parser.add_argument(
        "--adapter-start",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the denoising steps that the base does alone before the adapters act (%(default)s)",
    )
    parser.add_argument(
        "--sources",
        nargs="+",
        default=[],
        metavar="PATH",
        help='source pictures, for a base that edits or fills: one a prompt, or one for all; several as "a.png|b.png"',
    )
    parser.add_argument(
        "--masks", nargs="+", default=[], metavar="PATH", help="what to paint, white, for a base that fills; likewise"
    )
    parser.add_argument("--output", type=Path, default=Path("generated"), metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures of the same names in the folder")
    parser.add_argument("--compare-base", action="store_true", help="draw the base without adapters too")
    parser.add_argument("--trace", action="store_true", help="plot gates and band shares along the denoising steps")
    parser.add_argument(
        "--live",
        action="store_true",
        help="write what each picture looks like at each step, and its gate, into live/ of the folder, to be followed",
    )
    add_sampling(parser)
    parser.add_argument(
        "--num-frames", type=int, help="frames of a clip, with a base of videos; the base's own number when left out"
    )
    parser.add_argument(
        "--frame-rate", type=float, help="frames a second of clips that are saved; the base's own when left out"
    )
    parser.add_argument(
        "--seconds", type=float, help="length of a sound, with a base of sound; the base's own when left out"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw, save, say where."""
    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.generation.drawing import Drawing, draw, parse_weights, read_prompts

    drawing = Drawing(
        prompts=read_prompts(arguments.prompts, arguments.prompt_file),
        output=arguments.output,
        base=arguments.base,
        adapters=[parse_weights(text) for text in arguments.adapters],
        gates=arguments.gates,
        experts=arguments.experts,
        live=arguments.live,
        compare_base=arguments.compare_base,
        trace=arguments.trace,
        overwrite=arguments.overwrite,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        negative_prompt=arguments.negative_prompt,
        adapter_start=arguments.adapter_start,
        sources=arguments.sources,
        masks=arguments.masks,
        height=arguments.height,
        width=arguments.width,
        num_frames=arguments.num_frames,
        frame_rate=arguments.frame_rate,
        seconds=arguments.seconds,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        offload=arguments.offload,
        quantization=arguments.quantization,
    )
    with Terminal() as terminal:
        files = draw(drawing, terminal)
    for path in files:
        print(path)
    return 0
