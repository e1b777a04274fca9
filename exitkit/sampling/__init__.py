"""How a trajectory is run: schedulers, conditions, guidance, seeds."""

from exitkit.sampling.generate import Sample, generate
from exitkit.sampling.solvers import SAMPLERS, Solver, make_scheduler, make_solver

__all__ = ["SAMPLERS", "Sample", "Solver", "generate", "make_scheduler", "make_solver"]
