"""Damaged and hostile input for everything that reads files of strangers: `python scripts/fuzz.py --inputs 3000`.

Each input is a valid file, mutated, or random bytes. A reader may take it or refuse it as it documents; any other
exception, and any input that takes longer than two seconds of processor time, is a failure and is kept.
"""

import argparse
import hashlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

_SECONDS = 2.0
# Pieces that are more telling than random bytes.
_PIECES = [
    *(
        b"",
        b"\0",
        b"\n",
        b'"',
        b"\\",
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"NaN",
        b"-1",
        b"0",
        b"0.5",
        b"1e999",
        b"'",
        b",",
    ),
    *(b"9" * 30, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"../../secret.png", b"/etc/passwd", b"C:\\x.png"),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b"\x1b]0;x\x07",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"[a]\n",
        b"a = 1\n",
        b"(a+)+$",
        b".*" * 40,
    ),
    *(b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"1000000000", b"[[a]]\n", b"1979-05-27", b"x" * 5000),
]


@dataclass
class Reader:
    """Something that reads a file.

    Args:
        seeds: contents of valid files.
        read: reads contents, with a folder to put them in.
        refuses: what it raises by its documentation.
    """

    seeds: list[bytes]
    read: Callable[[bytes, Path], object]
    refuses: type[Exception]


@dataclass
class Count:
    """What became of the inputs of a reader."""

    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


def _text_lora() -> bytes:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_"
    metadata = {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 4.0})}
    return save({f"{layer}A.weight": torch.ones(2, 4), f"{layer}B.weight": torch.ones(4, 2)}, metadata)


def readers() -> dict[str, Reader]:
    """All readers by name."""
    from fera import FeraError
    from fera.adapters.file import open_adapter
    from fera.adapters.text.files import open_text, token_file
    from fera.config import DataConfig
    from fera.data.images import load_alpha, load_image
    from fera.data.sources import find_examples
    from fera.data.tensors import to_tensor
    from fera.format import CONFIG, TEXT_LORA, WEIGHTS
    from fera.training import load_config

    picture = _pictures()[0]
    weights, settings = _adapter()

    def config(content: bytes, folder: Path) -> object:
        (folder / "c.toml").write_bytes(content)
        return load_config(folder / "c.toml")

    def data(name: str) -> Callable[[bytes, Path], object]:
        def read(content: bytes, folder: Path) -> object:
            (folder / "a.png").write_bytes(picture)
            (folder / name).write_bytes(content)
            return find_examples(folder, DataConfig(train_data_dir=folder, trigger_word="w", shuffle_caption=True))

        return read

    def image(content: bytes, folder: Path) -> object:
        (folder / "a.png").write_bytes(content)
        load_alpha(folder / "a.png")
        return to_tensor(load_image(folder / "a.png"), (16, 24), 0.3)

    def adapter(weights_: bytes, settings_: bytes | None, folder: Path) -> object:
        (folder / WEIGHTS).write_bytes(weights_)
        if settings_ is not None:
            (folder / CONFIG).write_bytes(settings_)
        return open_adapter(folder).config

    def text(name: str) -> Callable[[bytes, Path], object]:
        def read(content: bytes, folder: Path) -> object:
            (folder / name).write_bytes(content)
            return open_text(folder, [name])

        return read

    toml = (
        b'base = "b"\noutput_dir = "o"\n[data]\ntrain_data_dir = "d"\nmask_path = "m"\n[adapter]\nr = 4\nkappa = "auto"'
    )
    lines = b'{"file_name": "a.png", "text": "a cat, red"}\n{"file_name": "b/c.png", "text": "x"}\n'
    return {
        "configuration": Reader([toml + b'\n[train]\nsteps = 3\n[validation]\nprompts = ["a"]\n'], config, FeraError),
        "caption": Reader([b"a red cat, on a mat\nsecond line\n", "über 🐈".encode()], data("a.txt"), FeraError),
        "metadata.jsonl": Reader([lines], data("metadata.jsonl"), FeraError),
        "metadata.csv": Reader([b'file_name,text\na.png,"a, cat"\nb.png,a dog\n'], data("metadata.csv"), FeraError),
        "picture": Reader(_pictures(), image, ValueError),
        "adapter weights": Reader([weights], lambda content, folder: adapter(content, None, folder), FeraError),
        "text encoder LoRA": Reader([_text_lora()], text(TEXT_LORA), FeraError),
        "learned token": Reader([save({"<toy>": torch.ones(2, 4)})], text(token_file("text_encoder")), FeraError),
        "adapter config": Reader([settings], lambda content, folder: adapter(weights, content, folder), FeraError),
    }


def mutate(content: bytes, draw: random.Random) -> bytes:
    """A few random changes of a file."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((0, 1, 1, 4, 16, 200)))
        kind = draw.randrange(5)
        if kind == 0:
            content = content[:start] + bytes(draw.randrange(256) for _ in range(end - start)) + content[end:]
        elif kind == 1:
            content = content[:start] + content[end:]
        elif kind == 2:
            content = content[:end] + content[start:end] * draw.choice((1, 1, 2, 100)) + content[end:]
        elif kind == 3:
            content = content[:start]
        else:
            content = content[:start] + draw.choice(_PIECES) + content[end:]
    return content


def try_one(reader: Reader, content: bytes) -> tuple[str, float]:
    """What becomes of an input, and the processor time it takes.

    Returns:
        "taken", "refused", or what went wrong; seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        try:
            reader.read(content, Path(folder))
            outcome = "taken"
        except reader.refuses:
            outcome = "refused"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
        seconds = time.process_time() - began
    return (outcome if seconds < _SECONDS else f"took {seconds:.1f} s"), seconds


def fuzz(reader: Reader, inputs: int, seed: int, keep: Path | None = None) -> Count:
    """Try many inputs on a reader."""
    draw, count = random.Random(seed), Count()
    for number in range(inputs):
        content = mutate(draw.choice(reader.seeds), draw) if number % 10 else draw.randbytes(draw.randrange(400))
        outcome, seconds = try_one(reader, content)
        count.slowest = max(count.slowest, seconds)
        if outcome in ("taken", "refused"):
            setattr(count, outcome, getattr(count, outcome) + 1)
        else:
            count.failures.append(outcome)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)
    return count


def _pictures() -> list[bytes]:
    pictures = []
    gradient = Image.linear_gradient("L").resize((20, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format_, mode in (
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "RGB"),
    ):
        buffer = io.BytesIO()
        gradient.convert(mode).save(buffer, format_, **({"exif": exif} if format_ in ("JPEG", "WEBP") else {}))
        pictures.append(buffer.getvalue())
    return pictures


def _adapter() -> tuple[bytes, bytes]:
    import torch

    from fera import FeraConfig

    config = FeraConfig(r=2, num_experts=2, target_modules=["to_q"], rank_pattern={"to_k": 1})
    config.base_fingerprint = {"class": "UNet", "tensors": 3, "sample": {"a": [0.5, 1.0]}}
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    prefix = "base_model.model."
    tensors = {
        f"{prefix}to_q.lora_A.weight": torch.zeros(4, 8),
        f"{prefix}to_q.lora_B.weight": torch.zeros(8, 4),
        f"{prefix}fera.router.output.weight": torch.zeros(2, 4),
    }
    metadata = {"format": "pt", "fera": json.dumps({"config": settings, "versions": {"fera": "0"}})}
    return save(tensors, metadata), json.dumps(settings, indent=1).encode()


def main(argv: list[str] | None = None) -> int:
    """Try inputs on all readers, and print a table; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=3000, help="a reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of the one reader to try")
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    arguments = parser.parse_args(argv)
    failed = False
    warnings.simplefilter("ignore")  # Pillow's, on odd EXIF data
    print("| reader | inputs | taken | refused | failed | slowest |\n|---|---|---|---|---|---|")
    for name, reader in readers().items():
        if arguments.only in (None, name):
            count = fuzz(reader, arguments.inputs, arguments.seed, arguments.keep)
            failed = failed or bool(count.failures)
            numbers = f"{arguments.inputs} | {count.taken} | {count.refused} | {len(count.failures)}"
            print(f"| {name} | {numbers} | {count.slowest:.2f} s |", flush=True)
            for failure in sorted(set(count.failures))[:10]:
                print(f"    {failure}")
    print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
