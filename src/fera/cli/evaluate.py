"""`fera evaluate`."""

import argparse
from pathlib import Path

# The values of fera.evaluation.settings.Features, whose package costs seconds to import.
FEATURES = ("auto", "judge", "inception", "clip", "dinov2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--base", default="emoji", help='diffusers pipeline: a folder, a Hub id, or "emoji" (%(default)s)'
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        dest="adapters",
        metavar="PATH[=WEIGHT]",
        help="routed or plain adapter, run folder, or fine-tuned denoiser, and its weight (1); give it again for more",
    )
    parser.add_argument(
        "--baseline", action="store_true", help="evaluate the base without adapters too, as is done without --adapter"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="real pictures and captions, not trained on"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="FOLDER",
        help="gets numbers and pictures (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace evaluations in the folder")
    parser.add_argument("--device", help="such as cuda or cpu; the fastest there is when left out")
    loss = parser.add_argument_group("held-out loss")
    loss.add_argument("--loss-samples", type=int, help="denoising samples (256)")
    loss.add_argument("--num-bands", type=int, help="frequency bands to split the error into (3)")
    drawing = parser.add_argument_group("pictures")
    drawing.add_argument("--prompts", nargs="+", metavar="PROMPT", help="what to draw; the captions when left out")
    drawing.add_argument(
        "--drift-prompts",
        nargs="+",
        metavar="PROMPT",
        help="prompts that have nothing to do with the adapter: how far does it move their pictures?",
    )
    drawing.add_argument("--max-prompts", type=int, metavar="N", help="how many captions to draw (64)")
    drawing.add_argument("--images-per-prompt", type=int, metavar="N", help="0 measures the loss alone (1)")
    drawing.add_argument("--steps", type=int, help="denoising steps (16)")
    drawing.add_argument("--guidance-scale", type=float, help="strength of guidance; 1 is off (3)")
    drawing.add_argument("--resolution", type=int, help="side in pixels; the base's own when left out")
    drawing.add_argument("--batch-size", type=int, help="samples or pictures at a time (8)")
    drawing.add_argument("--seed", type=int, help="of noise and timesteps (0)")
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--features",
        choices=FEATURES,
        help="what FID, KID, similarity, drift and diversity rest on; auto is the bundled judge where it knows the "
        "style (auto)",
    )
    networks.add_argument(
        "--clip-model", metavar="MODEL", help="folder or Hub id for --features clip (openai/clip-vit-base-patch32)"
    )
    networks.add_argument(
        "--dinov2-model", metavar="MODEL", help="folder or Hub id for --features dinov2 (facebook/dinov2-base)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, say what the numbers rest on."""
    from rich.console import Console
    from rich.table import Table

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.evaluation.settings import EvaluationSettings
    from fera.evaluation.side_by_side import Request, evaluate_side_by_side, table_of
    from fera.generation.drawing import parse_adapter

    given = {
        "loss_samples": arguments.loss_samples,
        "num_bands": arguments.num_bands,
        "prompts": tuple(arguments.prompts) if arguments.prompts else None,
        "max_prompts": arguments.max_prompts,
        "images_per_prompt": arguments.images_per_prompt,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "resolution": arguments.resolution,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "features": arguments.features,
        "clip_model": arguments.clip_model,
        "dinov2_model": arguments.dinov2_model,
        "drift_prompts": tuple(arguments.drift_prompts) if arguments.drift_prompts else None,
    }
    request = Request(
        base=arguments.base,
        data=arguments.data,
        output=arguments.output,
        adapters=[parse_adapter(text) for text in arguments.adapters],
        baseline=arguments.baseline,
        settings=EvaluationSettings(**{name: value for name, value in given.items() if value is not None}),
        overwrite=arguments.overwrite,
        device=arguments.device,
    )
    with Terminal() as terminal:
        evaluations = evaluate_side_by_side(request, terminal)
    console = Console(highlight=False)
    table = Table("", *evaluations, box=None, padding=(0, 2))
    for row in table_of(evaluations):
        table.add_row(*row)
    console.print(table)
    last = list(evaluations.values())[-1]
    for network in dict.fromkeys(last.networks.values()):
        metrics = ", ".join(name for name, other in last.networks.items() if other == network)
        console.print(f"{network}: {metrics}", markup=False, soft_wrap=True)
    for reason in dict.fromkeys(last.reasons.values()):
        metrics = ", ".join(name for name, other in last.reasons.items() if other == reason)
        console.print(f"none: {metrics}: {reason}", markup=False, soft_wrap=True)
    console.print(str(request.output), markup=False, soft_wrap=True)
    return 0
