#!/usr/bin/env bash
# datasets 5.2.0: to_parquet of a folder of pictures writes no pictures.
#
# Expected: Parquet files hold the pictures' bytes, as those of push_to_hub do, and as the dataset that save_to_disk
# writes does; so they can be moved to the machine that trains.
#
# What happens: to_parquet writes, for each picture, bytes = null and its path on this machine. Nothing is said, and
# the file reads well as long as the folder stays where it is. Elsewhere every picture is a FileNotFoundError.
#
# Output:
#   bytes in the Parquet file: [None, None, None]
#   with the folder in place: (8, 8)
#   folder gone, save_to_disk: (8, 8)
#   folder gone, to_parquet: FileNotFoundError

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 numpy==2.4.6 pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet
from PIL import Image

datasets.disable_progress_bars()
pictures = Path("pictures")
pictures.mkdir()
for index in range(3):
    Image.new("RGB", (8, 8), (index * 50, 0, 0)).save(pictures / f"{index}.png")

dataset = datasets.load_dataset("imagefolder", data_dir="pictures", split="train", cache_dir="cache")
dataset.to_parquet("saved.parquet")
dataset.save_to_disk("saved")
rows = pyarrow.parquet.read_table("saved.parquet").column("image").to_pylist()
print("bytes in the Parquet file:", [row["bytes"] and len(row["bytes"]) for row in rows])

moved = datasets.load_dataset("parquet", data_files="saved.parquet", split="train", cache_dir="cache")
print("with the folder in place:", moved[0]["image"].size)
shutil.rmtree(pictures)
print("folder gone, save_to_disk:", datasets.load_from_disk("saved")[0]["image"].size)
try:
    print("folder gone, to_parquet:", moved[0]["image"].size)
    failed = False
except FileNotFoundError:
    print("folder gone, to_parquet: FileNotFoundError")
    failed = True

assert failed and all(row["bytes"] is None for row in rows), "not as the header says"
PY
