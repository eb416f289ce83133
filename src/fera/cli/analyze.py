"""`fera analyze`."""

import argparse
from pathlib import Path

from fera.cli.sampling import add_sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.usage = "%(prog)s [--base BASE] [--adapter PATH] [--prompts PROMPT ...] [--data FOLDER] [options]"
    parser.add_argument(
        "--base", help='diffusers pipeline: a folder, a Hub id, or "emoji"; the one the adapter names when left out'
    )
    parser.add_argument(
        "--adapter",
        metavar="PATH[=WEIGHT]",
        help="adapter folder, run folder, safetensors file or Hub id, and its weight (1); without it, the base alone",
    )
    parser.add_argument("--prompts", nargs="+", default=[], metavar="PROMPT", help="what to draw; one picture each")
    parser.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line; empty lines are skipped"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="pictures to reconstruct from each noise level")
    parser.add_argument("--output", type=Path, default=Path("analysis"), metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an analysis in the folder")
    parser.add_argument("--no-experts", action="store_true", help="do not draw with single experts")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--num-bands", type=int, help="frequency bands; the adapter's, or 3")
    measuring.add_argument("--kappa", type=float, help="scale of the bands; the adapter's, or 1/128")
    measuring.add_argument("--levels", type=int, default=10, help="noise levels of the reconstruction (%(default)s)")
    measuring.add_argument(
        "--pictures", type=int, default=32, help="pictures to reconstruct, the first of the folder (%(default)s)"
    )
    measuring.add_argument("--resolution", type=int, help="their side in pixels; the base's own when left out")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> int:
    """Analyze, print the words and the files."""
    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.analysis.files import FILES
    from fera.analysis.run import Analysis, analyze
    from fera.analysis.walk import Sampling
    from fera.generation.drawing import parse_adapter, read_prompts

    prompts = read_prompts(arguments.prompts, arguments.prompt_file)
    sampling = Sampling(
        prompts=prompts,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        negative_prompt=arguments.negative_prompt,
        height=arguments.height,
        width=arguments.width,
        batch_size=arguments.batch_size,
    )
    request = Analysis(
        sampling=sampling if prompts else None,
        output=arguments.output,
        base=arguments.base,
        adapter=None if arguments.adapter is None else parse_adapter(arguments.adapter),
        data=arguments.data,
        levels=arguments.levels,
        pictures=arguments.pictures,
        resolution=arguments.resolution,
        experts=not arguments.no_experts,
        num_bands=arguments.num_bands,
        kappa=arguments.kappa,
        overwrite=arguments.overwrite,
        device=arguments.device,
        precision=arguments.precision,
        offload=arguments.offload,
        quantization=arguments.quantization,
    )
    with Terminal() as terminal:
        findings = analyze(request, terminal)
    for heading, sentences in findings.words().items():
        print(f"{heading}\n" + "\n".join(f"  {sentence}" for sentence in sentences))
    for name in FILES:
        if (arguments.output / name).exists():
            print(arguments.output / name)
    return 0
