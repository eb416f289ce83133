"""One HTML file about a training run: what it was, whether it helped, what its router does.

`write_report` reads whatever a run's folder holds, draws the base against the adapted base where it can, and writes a
page that opens from disk.
"""

from typing import TYPE_CHECKING

from fera.support.lazy import lazy_names

if TYPE_CHECKING:
    from fera.report.drawing import Sampling
    from fera.report.report import ReportRequest, write_report

__all__ = ["ReportRequest", "Sampling", "write_report"]

# Fresh pictures bring diffusers; charts and logs, which other rooms take from here, do without it.
__getattr__ = lazy_names(
    __name__,
    {
        "ReportRequest": "fera.report.report",
        "Sampling": "fera.report.drawing",
        "write_report": "fera.report.report",
    },
)
