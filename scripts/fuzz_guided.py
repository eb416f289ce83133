"""Input that looks for new paths through one reader: `python scripts/fuzz_guided.py "adapter config" --seconds 60`.

The readers are those of fuzz.py. atheris (`pip install atheris`, Linux and macOS) changes inputs so that they reach
lines of fera that none has reached before. It stops at the first input that a reader neither takes nor refuses as
documented, and leaves it in the working directory.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fera"]):
    import fuzz

    READERS = fuzz.readers()


class Unexpected(Exception):
    """A reader neither took nor refused its input."""


def main(argv: list[str] | None = None) -> None:
    """Fuzz one reader; libFuzzer ends the process, with 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer, above 0")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # Pillow's, on odd EXIF data
    reader = READERS[arguments.reader]

    def read(content: bytes) -> None:
        outcome, _ = fuzz.try_one(reader, content)
        if outcome not in ("taken", "refused"):
            raise Unexpected(outcome)

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(reader.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        limits = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *limits, "-max_len=4096", corpus], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
