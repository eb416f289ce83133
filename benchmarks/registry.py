"""All benchmarks by name."""

from collections.abc import Callable, Iterator

from benchmarks import (
    cached,
    clips,
    comfyui,
    compiled,
    consistency,
    families,
    full,
    generation,
    indicator,
    layer,
    memory,
    neighbours,
    offload,
    pictures,
    processes,
    quality,
    resident,
    run,
    scaling,
    share,
    startup,
    step,
    subspaces,
    web,
)
from benchmarks.race import Race
from benchmarks.setting import Setting

# Builds each race when its turn comes.
Builder = Callable[[Setting], Iterator[Race]]

BENCHMARKS: dict[str, Builder] = {
    "indicator": indicator.races,
    "layer": layer.races,
    "scaling": scaling.races,
    "step": step.races,
    "consistency": consistency.races,
    "generation": generation.races,
    "memory": memory.races,
    "run": run.races,
    "processes": processes.races,
    "compiled": compiled.races,
    "full": full.races,
    "share": share.races,
    "startup": startup.races,
    "pictures": pictures.races,
    "cached": cached.races,
    "clips": clips.races,
    "families": families.races,
    "neighbours": neighbours.races,
    "subspaces": subspaces.races,
    "offload": offload.races,
    "comfyui": comfyui.races,
    "web": web.races,
    "resident": resident.races,
    "quality": quality.races,
}

# Many minutes on two cores, or with needs of its own: run when asked for by name.
APART = (
    "compiled",
    "full",
    "share",
    "pictures",
    "cached",
    "neighbours",
    "subspaces",
    "offload",
    "clips",
    "families",
    "comfyui",
    "web",
    "resident",
    "quality",
)

DEFAULT = [name for name in BENCHMARKS if name not in APART]
