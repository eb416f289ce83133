"""Watch the router: which expert works when, printed and plotted.

make demo
python examples/trace_gates.py
"""

from diffusers import StableDiffusionPipeline

import fera
from fera import demo
from fera.generation import generate
from fera.traces.curves import RoutingCurves, routing_curves
from fera.traces.plot import plot_routing


def main(steps: int = 24, adapter: str = "runs/demo") -> RoutingCurves:
    """Trace one generation.

    Args:
        steps: denoising steps.
        adapter: an adapter for the emoji base.

    Returns:
        Gates and band shares along the steps; plotted to `routing.png`.
    """
    pipe = StableDiffusionPipeline.from_pretrained(demo.base_path())
    fera.load_adapter(pipe, adapter)
    with fera.trace(pipe) as routings:
        generate(pipe, ["red heart", "cat face", "rocket"], num_inference_steps=steps)
    (curves,) = routing_curves(routings)
    for timestep, shares, gates in zip(curves.timesteps, curves.indicator, curves.gates, strict=True):
        bands, experts = (" ".join(f"{value:.2f}" for value in row) for row in (shares, gates))
        print(f"timestep {timestep:5.0f}   bands {bands}   experts {experts}")
    plot_routing([curves], "routing.png")
    return curves


if __name__ == "__main__":
    main()
