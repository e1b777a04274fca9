"""Suites: a backbone with its data, and every method that can be run on it."""

from exitkit.benchmark.calibration import calibrated
from exitkit.benchmark.fitting import fitted
from exitkit.benchmark.methods import METHODS, Exits, Method, methods_for
from exitkit.benchmark.recipe import Recipe
from exitkit.benchmark.run import run_suite
from exitkit.benchmark.suite import Suite, load_suite

__all__ = [
    "METHODS",
    "Exits",
    "Method",
    "Recipe",
    "Suite",
    "calibrated",
    "fitted",
    "load_suite",
    "methods_for",
    "run_suite",
]
