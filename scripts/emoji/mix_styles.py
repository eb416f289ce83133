"""Two bundled styles as one, each named in its captions: what studies/two-styles.toml trains on.

`python scripts/emoji/mix_styles.py` writes `build/emoji/two-styles/`, with `train/`, `validation/` and `test/`. A name
is in the same split in both styles, so that held-out names are held out of both.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from fera.demo import unpack_style

# The word that a style's captions begin with.
WORDS = {"fluent-emoji-flat": "flat", "fluent-emoji-high-contrast": "line"}


def mix(words: dict[str, str], folder: Path) -> None:
    """Write styles into one folder.

    Args:
        words: name of a style to the word that its captions begin with.
        folder: where the three splits go; must not exist.
    """
    for style, word in words.items():
        with tempfile.TemporaryDirectory() as temporary:
            source = unpack_style(style, temporary)
            for split in sorted(path.name for path in source.iterdir()):
                target = folder / split
                target.mkdir(parents=True, exist_ok=True)
                lines = (source / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
                with (target / "metadata.jsonl").open("a", encoding="utf-8") as file:
                    for entry in map(json.loads, lines):
                        name = f"{word}-{entry['file_name']}"
                        shutil.copy(source / split / entry["file_name"], target / name)
                        file.write(json.dumps({"file_name": name, "text": f"{word} {entry['text']}"}) + "\n")


def main() -> None:
    """Write the two styles of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/emoji/two-styles"), help="must not exist yet")
    output: Path = parser.parse_args().output
    if output.exists():
        parser.error(f"{output} exists already")
    mix(WORDS, output)
    print(output)


if __name__ == "__main__":
    main()
