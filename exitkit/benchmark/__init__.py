"""Studies: a backbone with its data and sampler, and every contender that can be run on it."""

from exitkit.benchmark.classification import CLASSIFIERS, run_class_study
from exitkit.benchmark.fitting import fitted
from exitkit.benchmark.methods import CONTENDERS, Contender, contenders_for
from exitkit.benchmark.run import run_study
from exitkit.benchmark.suite import ClassStudy, Study, load_study

__all__ = [
    "CLASSIFIERS",
    "CONTENDERS",
    "ClassStudy",
    "Contender",
    "Study",
    "contenders_for",
    "fitted",
    "load_study",
    "run_class_study",
    "run_study",
]
