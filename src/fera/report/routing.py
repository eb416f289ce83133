"""Gates and band shares along the denoising steps, back from the table that `fera.analysis.save_csv` writes."""

import csv
from pathlib import Path

from fera.report.log import number
from fera.traces.curves import RoutingCurves

_COLUMNS = ("adapter", "step", "timestep", "quantity", "index", "mean", "std")


def read_curves(path: Path, problems: list[str]) -> list[RoutingCurves]:
    """Read gates.csv.

    Args:
        path: the file; one that is not there has no curves.
        problems: gets a line where it is damaged.

    Returns:
        One entry an adapter, in the order of the file; none where it is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _parse(list(csv.DictReader(file)))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        problems.append(f"{path.name} is no table of gates as fera writes it ({error or type(error).__name__})")
        return []


def _parse(rows: list[dict[str, str]]) -> list[RoutingCurves]:
    """Curves from the rows.

    Raises:
        ValueError: a row lacks a column, a number is none, or a step lacks an expert or a band.
    """
    cells: dict[str, dict[tuple[str, int, int], tuple[float, float]]] = {}
    timesteps: dict[str, dict[int, float]] = {}
    for line, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in _COLUMNS) or row["quantity"] not in ("gate", "band"):
            raise ValueError(f"line {line} is not complete")
        mean, std, timestep = (number(float(row[column])) for column in ("mean", "std", "timestep"))
        if mean is None or std is None or timestep is None:
            raise ValueError(f"line {line} has a number that is not finite")
        step, index = int(row["step"]), int(row["index"])
        cells.setdefault(row["adapter"], {})[row["quantity"], step, index] = (mean, std)
        timesteps.setdefault(row["adapter"], {})[step] = timestep
    return [_curves(name, table, timesteps[name]) for name, table in cells.items()]


def _curves(
    name: str, table: dict[tuple[str, int, int], tuple[float, float]], timesteps: dict[int, float]
) -> RoutingCurves:
    steps = sorted(timesteps)

    def rows(quantity: str, part: int) -> list[list[float]]:
        indices = sorted({index for kind, _, index in table if kind == quantity})
        if not indices or any((quantity, step, index) not in table for step in steps for index in indices):
            raise ValueError(f"a step lacks a {quantity}")
        return [[table[quantity, step, index][part] for index in indices] for step in steps]

    return RoutingCurves(
        adapter=name,
        timesteps=[timesteps[step] for step in steps],
        gates=rows("gate", 0),
        gates_std=rows("gate", 1),
        indicator=rows("band", 0),
        indicator_std=rows("band", 1),
    )
