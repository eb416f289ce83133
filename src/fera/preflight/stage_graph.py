"""The graph of a run's stages, before anything is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fera.config import TrainConfig
from fera.data.example import repeat
from fera.domains.graph import DomainGraph
from fera.errors import FeraError
from fera.support.progress import SILENT, Listener
from fera.training.start.encoding import encode
from fera.training.start.kappa import calibrate, with_kappa
from fera.training.start.opening import open_sources
from fera.training.start.stage_distances import domain_graph, draw_graph, graph_record
from fera.training.start.stages import order_of_stages, rows_of_stages


@dataclass(frozen=True)
class StageGraph:
    """The stages of a run, their distances, and the order that a run visits them in.

    Args:
        graph: the distances.
        order: how the order is chosen, as in the configuration.
        names: names of the stages as they come; in the given order where all are trained together.
        length: length of the way through them; None where all are trained together.
        pictures: training pictures of each stage, in the order of the graph.
    """

    graph: DomainGraph
    order: str
    names: list[str]
    length: float | None
    pictures: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-like."""
        return {
            "order": self.order,
            "stages": self.names,
            "length": self.length,
            "pictures": dict(zip(self.graph.names, self.pictures, strict=True)),
            "graph": graph_record(self.graph),
        }

    def draw(self, path: Path) -> None:
        """Draw it.

        Args:
            path: the file; its ending chooses the format (png, svg, pdf).

        Raises:
            FeraError: it cannot be written.
        """
        try:
            draw_graph(self.graph, self.order, self.names, path)
        except (OSError, ValueError) as error:
            raise FeraError(f"`output` {path} cannot be written: {error}") from error


def stage_graph(config: TrainConfig, listener: Listener = SILENT) -> StageGraph:
    """Look at the stages of a run as its start does; encoded pictures stay in the run's cache.

    Args:
        config: the configuration of the run.
        listener: hears what happens.

    Raises:
        FeraError: there are no stages, the data or the base cannot work, or the features cannot be had.
    """
    data = config.data
    if not data.stages:
        raise FeraError("there are no data.stages in the configuration: list the folders to visit, and the target")
    device = Accelerator().device
    # The denoiser is not asked, so there is no point in quantizing or moving it.
    train = config.train.model_copy(update={"offload": "none"})
    sources = open_sources(config.model_copy(update={"quantization": "none", "train": train}), listener)
    training = encode(sources, config, device, listener).training
    if config.adapter.is_routed and config.adapter.kappa == "auto":
        config = with_kappa(config, calibrate(training, sources.process, config, device, listener).kappa)
    examples = repeat(sources.training)
    rows = rows_of_stages(data, examples)
    graph = domain_graph(data, config.adapter, training, examples, rows, device=device, listener=listener)
    is_route = data.stage_order not in ("given", "together")
    order = order_of_stages(data, graph if is_route else None)
    return StageGraph(
        graph=graph,
        order=data.stage_order,
        names=graph.named(order),
        length=graph.length(order) if data.stage_order != "together" else None,
        pictures=[len(one) for one in rows],
    )
