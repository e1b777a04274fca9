"""On what: samplers, conditions, and the one sampling loop that all verbs share."""

from exitkit.sampling.conditions import Conditions
from exitkit.sampling.generate import generate
from exitkit.sampling.loop_sampler import LoopSampler
from exitkit.sampling.rollout import Rollout
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sample import Edit, Record, Sample
from exitkit.sampling.sampler import Sampler, SamplerBase
from exitkit.sampling.solvers import SAMPLERS, Solver, make_scheduler, make_solver

__all__ = [
    "SAMPLERS",
    "Conditions",
    "Edit",
    "LoopSampler",
    "Record",
    "Rollout",
    "Rollouts",
    "Sample",
    "Sampler",
    "SamplerBase",
    "Solver",
    "generate",
    "make_scheduler",
    "make_solver",
]
