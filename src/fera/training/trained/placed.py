"""Which layers a saved adapter is in."""

import json
from pathlib import Path

from fera.errors import FeraError
from fera.format import CONFIG


def placed_by(folder: Path) -> dict[str, list[str]]:
    """Where a saved adapter goes, as its PEFT config says.

    Args:
        folder: of the adapter, routed or plain.

    Returns:
        `target_modules`, and `exclude_modules` where there are any.

    Raises:
        FeraError: the config cannot be read.
    """
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        placed = {name: settings.get(name) for name in ("target_modules", "exclude_modules")}
        return {name: [str(layer) for layer in layers] for name, layers in placed.items() if layers}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FeraError(f"cannot read the config of the adapter {path}: {error}") from error
