"""Studies: a backbone with its data and sampler, and every contender that can be run on it."""

from exitkit.studies.catalogue import CONTENDERS, Contender, contenders_for
from exitkit.studies.classes import CLASSIFIERS, run_class_study
from exitkit.studies.fitting import fitted
from exitkit.studies.running import run_study
from exitkit.studies.study import ClassStudy, Study, load_study

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
