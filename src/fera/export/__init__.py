"""Take an adapter out of fera, or bring one in: plain LoRA files, merging, checkpoints of the released code.

A plain LoRA or a merged weight has one mixture of the experts where a routed adapter has one a step. `gates` chooses
the mixture, `static` builds the LoRA, `formats` names its tensors as other tools do, `gap` measures what was lost.
"""

from typing import TYPE_CHECKING

from fera.support.lazy import lazy_names

if TYPE_CHECKING:
    from fera.export.merging import Merged, merge
    from fera.traces.gates import GateChoice, GateTrace

__all__ = ["GateChoice", "GateTrace", "Merged", "merge"]

# Merging brings PEFT and diffusers; names of layers in other tools need neither.
__getattr__ = lazy_names(
    __name__,
    {
        "GateChoice": "fera.traces.gates",
        "GateTrace": "fera.traces.gates",
        "Merged": "fera.export.merging",
        "merge": "fera.export.merging",
    },
)
