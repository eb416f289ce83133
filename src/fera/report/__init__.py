"""One HTML file about a training run: what it was, whether it helped, what its router does.

`write_report` reads whatever a run's folder holds, draws the base against the adapted base where it can, and writes a
page that opens from disk.
"""

from fera.report.drawing import Sampling
from fera.report.report import ReportRequest, write_report

__all__ = ["ReportRequest", "Sampling", "write_report"]
