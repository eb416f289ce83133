"""Studies: several methods, styles and seeds, with all else equal, and what their differences are worth.

`read_study` reads a study, `work` does its runs, `read_results` and `write_report` say what came of them.
"""

from fera.comparison.results import Result, collect, read_collection, read_results, read_trials, unpack
from fera.comparison.study import Study, read_study

__all__ = [
    "Result",
    "Study",
    "collect",
    "read_collection",
    "read_results",
    "read_study",
    "read_trials",
    "unpack",
]
