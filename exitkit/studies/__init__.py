"""Studies: a backbone with its data and sampler, and every contender that can be run on it."""

from exitkit.studies.catalogue import CONTENDERS, Contender, contenders_for
from exitkit.studies.running import fitted, run_study
from exitkit.studies.study import Study, load_study

__all__ = [
    "CONTENDERS",
    "Contender",
    "Study",
    "contenders_for",
    "fitted",
    "load_study",
    "run_study",
]
