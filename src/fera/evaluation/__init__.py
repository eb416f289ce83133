"""The same numbers for any adapter, or none, on any folder of real pictures.

`evaluate` measures held-out denoising, draws the folder's captions, and compares the drawings with its pictures.
docs/evaluation.md says what each number means and which network it rests on.
"""

from fera.evaluation.evaluating import evaluate
from fera.evaluation.results import Evaluation, Picture, Sample
from fera.evaluation.settings import EvaluationSettings
from fera.features.judge import Judge, load_judge

__all__ = ["Evaluation", "EvaluationSettings", "Judge", "Picture", "Sample", "evaluate", "load_judge"]
