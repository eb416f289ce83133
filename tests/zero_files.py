"""Files of weights at full size that take no place on the disk, and a machine without a network."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def file_of_zeros(path: Path, weights: Mapping[str, Tensor]) -> Path:
    """A safetensors file in half precision without a byte of weights on the disk."""
    header, place = {}, 0
    for key, weight in weights.items():
        size = 2 * weight.numel()
        header[key] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path


def no_network(*_: object) -> None:
    """In the place of a socket's `connect`."""
    raise AssertionError("nothing is fetched")
