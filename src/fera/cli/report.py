"""`fera report`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of fera train or fera demo")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="(RUN/report.html)")
    parser.add_argument(
        "--draw",
        action=argparse.BooleanOptionalAction,
        help="draw fresh pictures, base against adapted; when left out, where base and adapter can be loaded",
    )
    sampling = parser.add_argument_group("fresh pictures", "What is left out is as the run's [validation] has it.")
    sampling.add_argument("--prompts", nargs="+", default=[], metavar="PROMPT", help="what to draw; one picture each")
    sampling.add_argument("--base", help="where the base is, if not where the run says")
    sampling.add_argument("--seed", type=int, help="of the first picture, counting up from there")
    sampling.add_argument("--steps", type=int, help="denoising steps")
    sampling.add_argument("--guidance-scale", type=float, help="strength of guidance; 1 is off")
    sampling.add_argument("--device", help="such as cuda or cpu; the fastest there is when left out")


def run(arguments: argparse.Namespace) -> int:
    """Write the report, say where."""
    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.report import ReportRequest, Sampling, write_report

    request = ReportRequest(
        run=arguments.run,
        output=arguments.output,
        draw=arguments.draw,
        sampling=Sampling(
            prompts=arguments.prompts,
            base=arguments.base,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            device=arguments.device,
        ),
    )
    with Terminal() as terminal:
        path = write_report(request, terminal)
    print(path)
    return 0
