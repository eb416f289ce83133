"""FeRA's nodes for ComfyUI. All they do is in `fera.comfyui`; this folder goes into ComfyUI's `custom_nodes`."""

import sys
from pathlib import Path

try:
    from fera.comfyui.nodes import NODES, register_folder
except ModuleNotFoundError as error:
    # In a checkout of the repository the library lies beside this folder. The nodes need nothing that ComfyUI lacks.
    _source = Path(__file__).resolve().parent.parent / "src"
    if not str(error.name).startswith("fera"):
        raise
    if not (_source / "fera").is_dir():
        raise ImportError("FeRA's nodes need the library fera: pip install --no-deps fera") from None
    # Python takes any folder of that name for it, such as a checkout inside of ComfyUI's own folder.
    sys.modules.pop("fera", None)
    sys.path.insert(0, str(_source))
    from fera.comfyui.nodes import NODES, register_folder

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

register_folder()

NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
