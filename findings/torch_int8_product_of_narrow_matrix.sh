#!/usr/bin/env bash
# torch 2.13.0, optimum-quanto 0.2.7: a bfloat16 product with an 8-bit matrix of few columns ends the process on a CPU.
#
# Expected: the product, or an error. `torch._weight_int8pack_mm` is what quanto's 8-bit layers call in bfloat16 on a CPU
# for widths that are multiples of 4.
#
# What happens: with 4 columns and several rows the process gets a segmentation fault. With 64 it computes.
#
# Output (CPU with AVX-512):
#   64 columns: exit status 0
#   4 columns: exit status 139

set -uo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
for columns in 64 4; do
    "$folder/venv/bin/python" - "$columns" > /dev/null 2>&1 <<'PY'
import sys

import torch

columns = int(sys.argv[1])
weight, scale = torch.ones(128, columns, dtype=torch.int8), torch.ones(128).bfloat16()
for rows in range(1, 9):
    torch._weight_int8pack_mm(torch.ones(rows, columns).bfloat16(), weight, scale)
PY
    echo "$columns columns: exit status $?"
done
