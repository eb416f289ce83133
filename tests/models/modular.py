"""A modular pipeline that is called as the others are."""

from typing import Any

from diffusers.modular_pipelines import ModularPipeline, ModularPipelineBlocks


class Modular:
    """Blocks with their components, and one of their outputs in place of their state.

    Args:
        blocks: what it runs.
        output: name of the output that a call returns.
        components: by name.
    """

    def __init__(self, blocks: ModularPipelineBlocks, output: str, **components: Any) -> None:
        self.pipeline: ModularPipeline = blocks.init_pipeline()
        self.pipeline.update_components(**components)
        self._output = output

    def __getattr__(self, name: str) -> Any:
        """Whatever the pipeline has."""
        return getattr(self.pipeline, name)

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Of each block that has a bar."""
        self.pipeline.set_progress_bar_config(**settings)

    def __call__(self, return_dict: bool = True, **call: Any) -> tuple[Any]:
        """The output, in a tuple."""
        return (self.pipeline(**call, output=self._output),)
