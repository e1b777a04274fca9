"""One search for every path of policies and every target.

Cost falls and error grows along a path, in the closed loop nearly always: the bracket that a
bisection keeps may be wrong, so the best of what was measured counts, never a position that was only
inferred. Where a path knows beforehand about what its policies cost, that says where to look first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from exitkit.calibration.paths.base import PolicyPath
from exitkit.calibration.workload import Workload
from exitkit.errors import CalibrationError
from exitkit.policies import Measurement

RUNS = 14
"""Most measurements between the ends of a continuous path, which bisect it to 1 / 16384."""

WORTH = 1e-3
"""Cost that a search within an error bound goes on for."""


@dataclass(frozen=True)
class Target:
    """What is asked for: one of the two.

    Attributes:
        budget: Largest cost, in (0, 1].
        max_error: Largest mean error, above 0.
    """

    budget: float | None = None
    max_error: float | None = None

    def fits(self, measured: Measurement, tolerance: float) -> bool:
        """Whether a policy may be returned; a cost may be above the budget by the tolerance."""
        if self.budget is None:
            return measured.error <= (self.max_error or 0.0)
        return measured.cost <= self.budget * (1 + tolerance)

    def meets(self, measured: Measurement, tolerance: float) -> bool:
        """Whether it fits and comes so near to the target that looking on would gain nothing."""
        if not self.fits(measured, tolerance):
            return False
        if self.budget is None:
            return measured.error >= (self.max_error or 0.0) * (1 - tolerance)
        return measured.cost >= self.budget * (1 - tolerance)

    def order(self, measured: Measurement) -> tuple[float, float]:
        """Key by which policies that fit are put in order, the best first.

        Arguments:
            measured: A policy that fits.

        Returns:
            Error, then cost, within a budget; cost, then error, within an error bound.
        """
        pair = (measured.error, measured.cost)
        return pair if self.budget is not None else (measured.cost, measured.error)


class OutOfReach(CalibrationError):
    """No policy of a path meets a target; the message says what can be met.

    Attributes:
        nearest: The cheapest policy for a budget, the safest for an error bound.
    """

    def __init__(self, path: PolicyPath, target: Target, nearest: Measurement) -> None:
        self.nearest = nearest
        if target.budget is not None:
            super().__init__(
                f"budget={target.budget:g} is out of reach for {path}: its cheapest setting, "
                f"{nearest.policy}, costs {nearest.cost:.3f}; reachable are {nearest.cost:.3f} to 1. "
                f"Pass budget={_up(nearest.cost)} or more, or wrap and fit exits at earlier blocks, such as "
                "exits=(1,). What is still too much, fewer sampler steps save: sampler.with_steps(n)."
            )
        else:
            super().__init__(
                f"max_error={target.max_error:g} is out of reach for {path}: its safest setting, "
                f"{nearest.policy}, costs {nearest.cost:.3f} with an error of {nearest.error:.3g}. "
                f"Pass max_error={_up(nearest.error)} or more, or wrap and fit exits at later blocks, such "
                "as exits=(-1,)."
            )


def _up(value: float) -> str:
    """A number that is just above, with three places that count."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2) if 0 < value < math.inf else 1.0
    return f"{math.ceil(value / unit) * unit:.3g}"


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        measurement: The measurement of the policy chosen.
        path: The path it lies on.
        position: Where, in [0, 1].
        costs: Positions measured on the way there, rising, and what their policies cost.
    """

    measurement: Measurement
    path: PolicyPath
    position: float
    costs: tuple[tuple[float, float], ...] = ()


def search(path: PolicyPath, workload: Workload, target: Target) -> Measurement:
    """Finds the policy of a path that comes nearest to a target.

    Arguments:
        path: From its safest policy to its cheapest.
        workload: What policies are measured on.
        target: What is asked for.

    Returns:
        The measurement of the policy with the smallest error of those measured within the budget, or with
        the smallest cost within the error bound.

    Raises:
        CalibrationError: If no policy of the path meets the target; the message says what it can.
    """
    return locate(path, workload, target).measurement


def locate(path: PolicyPath, workload: Workload, target: Target) -> Found:
    """Does what `search` does, and says where on the path the policy lies.

    Arguments:
        path: As in `search`.
        workload: As in `search`.
        target: As in `search`.

    Returns:
        What was found.

    Raises:
        CalibrationError: As in `search`.
    """
    workload.expect(most_runs(path))
    measured: dict[float, Measurement] = {}
    last = max(1, (path.settings or 2) - 1)
    continuous, tolerance = path.settings is None, path.tolerance
    # Settings lie at whole places; between two neighbours there is none.
    step = 1.0 / 2**RUNS if continuous else 1
    # The largest cost that a search goes on above; the tolerance is room for the last one.
    ceiling = (target.budget or 0.0) * (1 if continuous else 1 + tolerance)

    def at(place: float) -> Measurement:
        measured[place] = workload.measure(path.at(place / last))
        return measured[place]

    if target.budget is not None and target.budget * (1 + tolerance) >= 1:
        safest = at(0)  # nothing is spared, so nothing has to be looked for
        if target.fits(safest, tolerance):
            return Found(safest, path, 0.0)
    now = at(last)
    if target.budget is not None and not target.fits(now, tolerance):
        raise OutOfReach(path, target, now)
    if target.budget is None and target.fits(now, tolerance):
        return Found(now, path, 1.0)
    # At -1 stands a safest setting that is not measured yet.
    low, high = (0.0, 1.0) if continuous else (-1, last)
    runs, shift = 0, 0.0
    while high - low > step and not (continuous and target.meets(now, tolerance)):
        if not _worthwhile(measured, low, high, target):
            break
        wanted = None if runs % 3 == 2 else ceiling - shift  # every third measurement halves
        place = _next(path, target, low, high, wanted)
        now, runs = at(place), runs + 1
        shift = now.cost - path.expected_cost(place / last)
        goes_on = target.fits(now, tolerance) if target.budget is None else now.cost > ceiling
        low, high = (place, high) if goes_on else (low, place)
        if runs == RUNS and continuous:
            break
    between: Found | None = None
    if target.budget is not None and not (continuous and target.meets(now, tolerance)):
        finer = path.between(max(0.0, low) / last, high / last)
        between = None if finer is None else locate(finer, workload, target)
    # Heads may cost more than they spare: then the safest setting is cheaper, too.
    fitting = [m for m in measured.values() if target.fits(m, tolerance)]
    if not fitting or (target.budget is None and min(m.cost for m in fitting) >= 1):
        safest = at(0)
        if not fitting and not target.fits(safest, tolerance):
            raise OutOfReach(path, target, safest)
    able = [place for place, m in measured.items() if target.fits(m, tolerance)]
    best = min(able, key=lambda place: target.order(measured[place]))
    if between and target.order(between.measurement) <= target.order(measured[best]):
        return between
    costs = tuple((place / last, measured[place].cost) for place in sorted(measured))
    return Found(measured[best], path, best / last, costs)


def most_runs(path: PolicyPath) -> int:
    """The largest number of policies that a search along a path runs: its ends, and those between.

    Arguments:
        path: The path.
    """
    return 2 + (RUNS if path.settings is None else max(0, path.settings - 2).bit_length())


def _worthwhile(
    measured: Mapping[float, Measurement], low: float, high: float, target: Target
) -> bool:
    """Whether what lies between two policies may be worth a run."""
    if target.budget is not None or low not in measured:
        return True
    return measured[low].cost - measured[high].cost > WORTH


def _next(path: PolicyPath, target: Target, low: float, high: float, wanted: float | None) -> float:
    """The place to measure next, strictly between two others: where a cost is expected, or halfway."""
    last = max(1, (path.settings or 2) - 1)
    middle = (low + high) / 2 if path.settings is None else (low + high) // 2
    if wanted is None:
        return middle
    ends = [path.expected_cost(max(0.0, place) / last) for place in (low, high)]
    if target.budget is None:
        wanted = sum(ends) / 2
    if not ends[1] < wanted < ends[0]:
        return middle
    position = path.expected_position(wanted, max(0.0, low) / last, high / last)
    if path.settings is not None:
        return min(max(round(position * last), low + 1), high - 1)
    # Too near to what was measured already it would teach nothing.
    return position if low + 3e-5 < position < high - 3e-5 else middle


def best_of(paths: Sequence[PolicyPath], workload: Workload, target: Target) -> Found:
    """Searches several paths and takes the best result; the nearest refusal counts if all refuse.

    Arguments:
        paths: The paths; those marked as fallback only count where all others refuse.
        workload: What policies are measured on.
        target: What is asked for.

    Returns:
        The policy with the smallest error within the budget, or with the smallest cost within the
        error bound.

    Raises:
        CalibrationError: If no path meets the target.
    """
    found: list[Found] = []
    refused: list[OutOfReach] = []
    for path in sorted(paths, key=lambda path: path.fallback):
        if path.fallback and found:
            continue
        try:
            found.append(locate(path, workload, target))
        except OutOfReach as error:
            refused.append(error)
    if not found:
        by_budget = target.budget is not None
        raise min(refused, key=lambda e: e.nearest.cost if by_budget else e.nearest.error)
    best = min(found, key=lambda f: target.order(f.measurement))
    if target.budget is None:
        return best
    for variant in best.path.variants(best.position):
        measured = workload.measure(variant)
        fits = target.fits(measured, best.path.tolerance)
        if fits and target.order(measured) < target.order(best.measurement):
            best = replace(best, measurement=measured)
    return best
