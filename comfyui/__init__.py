"""FeRA's nodes for ComfyUI. All they do is in `fera.comfyui`; this folder goes into ComfyUI's `custom_nodes`."""

import sys
from pathlib import Path

try:
    import fera
except ImportError:
    # In a checkout of the repository the library lies beside this folder. The nodes need nothing that ComfyUI lacks.
    _source = Path(__file__).resolve().parent.parent / "src"
    if not (_source / "fera").is_dir():
        raise ImportError("FeRA's nodes need the library fera: pip install --no-deps fera") from None
    sys.path.append(str(_source))
    import fera  # noqa: F401

from fera.comfyui.nodes import NODES, register_folder

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

register_folder()

NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
