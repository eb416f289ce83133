"""Writing safetensors files whose bytes depend on their content alone.

safetensors keeps a file's metadata in a hash map and writes it in another order each time: one adapter saved twice
would be two files to a checksum, to the Hub and to a cache.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

# A file begins with the length of its header, and tensors are aligned to as much.
_LENGTH_BYTES = 8


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: equal tensors and metadata give equal bytes.

    Args:
        tensors: on the CPU, contiguous, none of which shares memory with another.
        path: the file; replaced where it exists.
        metadata: the metadata of the file.

    Raises:
        OSError: it cannot be written.
    """
    data = memoryview(save(dict(tensors), metadata=dict(metadata)))
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(bytes(data[_LENGTH_BYTES:start]))
    # The tensors are in an order of their own already.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        file.write(data[start:])
