"""ComfyUI's names of layers: one module a kin of models, how they are looked up, and files that use them.

`tests/comfyui` loads such files with ComfyUI's own code, and gives its models the weights of diffusers' by these names.
"""

from fera.export.comfyui.format import HOLDS, named, refuses
from fera.export.comfyui.lookup import layer_in_comfyui, names_in_comfyui

__all__ = ["HOLDS", "layer_in_comfyui", "named", "names_in_comfyui", "refuses"]
