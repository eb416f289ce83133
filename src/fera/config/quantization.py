"""Names of the ways to hold a base's linear layers; `fera.pipelines.quantization_kinds` says what each is."""

from typing import Literal

Quantization = Literal["none", "8bit", "4bit", "fp8", "torchao-int8", "torchao-fp8", "torchao-int4", "quanto-int4"]
