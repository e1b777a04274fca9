"""Certificates: against exact sums and brute force, and whether the guarantees hold when repeated."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import pytest
import torch

from exitkit.calibration.certificates import (
    betting_bound,
    conformal_risk,
    conformal_statistics,
    hoeffding_bentkus,
    learn_then_test,
    upper_confidence,
)
from exitkit.errors import ConfigError, NonFiniteError, ShapeError

REPEATS, DELTA = 200, 0.1


@functools.cache
def binomial_cdf(k: int, n: int, p: Fraction) -> Fraction:
    """Exact: a sum of whole numbers over one denominator."""
    ones, zeros = p.numerator, p.denominator - p.numerator
    ways = sum(math.comb(n, i) * ones**i * zeros ** (n - i) for i in range(k + 1))
    return Fraction(ways, p.denominator**n)


# At most so many of the repeats may break a guarantee that holds: beyond, one run in a thousand would.
ALLOWED = next(
    k for k in range(REPEATS) if binomial_cdf(k, REPEATS, Fraction(1, 10)) > Fraction(999, 1000)
)


def naive_p_value(count: int, n: int, bound: Fraction) -> float:
    """The formula for `count` ones among n, in exact rationals as far as it goes."""
    a, b = min(count / n, float(bound)), float(bound)
    kl = (a * math.log(a / b) if a else 0) + (1 - a) * math.log((1 - a) / (1 - b))
    return min(math.exp(-n * kl), math.e * float(binomial_cdf(count, n, bound)), 1.0)


def naive_betting_bound(losses: list[float], delta: float) -> float:
    """Scans means on a grid and multiplies the bets one by one."""
    n = len(losses)

    def wealth(mean: float) -> float:
        total, squares, spread, now, best = 0.5, 0.25, 0.25, 1.0, 0.0
        for i, x in enumerate(losses, start=1):
            bet = min(1.0, math.sqrt(2 * math.log(1 / delta) / (n * spread)))
            now *= 1 - bet * (x - mean)
            best = max(best, now)
            total += x
            squares += (x - total / (1 + i)) ** 2
            spread = squares / (1 + i)
        return best

    return next((m / 2000 for m in range(2001) if wealth(m / 2000) > 1 / delta), 1.0)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the p-value ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 25, 60])
@pytest.mark.parametrize(
    "bound", [Fraction(1, 50), Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)]
)
def test_the_p_value_equals_the_exact_sums(n, bound):
    for count in range(n + 1):
        expected = naive_p_value(count, n, bound)
        assert hoeffding_bentkus(count / n, n, float(bound)) == pytest.approx(expected, rel=1e-9)


def test_the_p_value_rounds_counts_up_but_not_for_rounding_errors():
    assert 0.28 * 25 > 7  # what a mean of 7 ones among 25 is in floating point
    tight = Fraction(6, 10)  # where Bentkus decides
    assert hoeffding_bentkus(0.28, 25, 0.6) == pytest.approx(naive_p_value(7, 25, tight))
    bentkus = math.e * float(binomial_cdf(2, 10, Fraction(1, 2)))
    kl = 0.11 * math.log(0.11 / 0.5) + 0.89 * math.log(0.89 / 0.5)
    assert hoeffding_bentkus(0.11, 10, 0.5) == pytest.approx(min(bentkus, math.exp(-10 * kl)))


def test_the_p_value_far_out_and_for_many():
    # (1 - bound)^n for no loss at all: no underflow before the end of the doubles.
    assert hoeffding_bentkus(0.0, 1, 0.25) == pytest.approx(0.75)
    assert hoeffding_bentkus(0.0, 100_000, 0.001) == pytest.approx(0.999**100_000, rel=1e-6)
    assert hoeffding_bentkus(0.0, 10**6, 0.5) == 0.0
    assert 0.0 < hoeffding_bentkus(0.0199, 200_000, 0.02) < 1.0
    for risk in (0.3, 0.5, 1.0):  # Nothing speaks against a risk above the bound.
        assert hoeffding_bentkus(risk, 50, 0.3) == 1.0


def test_the_p_value_is_monotone():
    risks = torch.linspace(0, 1, 101).tolist()
    values = [hoeffding_bentkus(r, 40, 0.3) for r in risks]
    assert values == sorted(values)
    bounds = [hoeffding_bentkus(0.1, 40, b) for b in torch.linspace(0.01, 0.99, 99).tolist()]
    assert bounds == sorted(bounds, reverse=True)
    counts = [hoeffding_bentkus(0.1, n, 0.2) for n in range(10, 400, 10)]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("bound", [0.05, 0.3])
def test_the_p_value_is_one(bound):
    # At the boundary P[p <= u] <= u for every u that p can take: summed exactly, not sampled.
    n = 40
    exact = Fraction(bound).limit_denominator(100)
    values = [hoeffding_bentkus(k / n, n, bound) for k in range(n + 1)]
    for k, u in enumerate(values):
        if u < 1:
            assert float(binomial_cdf(k, n, exact)) <= u + 1e-12


# --- the betting bound ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 30, 150])
def test_the_betting_bound_equals_a_scan(n):
    for seed, power in ((0, 1.0), (1, 6.0)):
        losses = uniform(1, n, seed=seed) ** power
        for delta in (0.05, 0.5):
            expected = naive_betting_bound(losses[0].tolist(), delta)
            assert float(betting_bound(losses, delta)) == pytest.approx(expected, abs=1 / 2000)


def test_the_betting_bound_of_extremes():
    zeros, ones = torch.zeros(1, 200), torch.ones(1, 200)
    assert 0 < float(betting_bound(zeros, 0.1)) < 0.03
    assert float(betting_bound(ones, 0.1)) == pytest.approx(1.0)
    assert float(betting_bound(torch.zeros(1, 1), 0.1)) == 1.0  # One loss proves nothing.
    steady, loose = torch.full((1, 200), 0.3), (uniform(1, 200) < 0.3).double()
    assert float(betting_bound(steady, 0.1)) < float(betting_bound(loose, 0.1))
    longer = [float(betting_bound(torch.full((1, n), 0.3), 0.1)) for n in (20, 80, 320)]
    assert longer == sorted(longer, reverse=True)
    strict = [float(betting_bound(loose, delta)) for delta in (0.01, 0.1, 0.5)]
    assert strict == sorted(strict, reverse=True)


def test_what_is_scaled_is_scaled_back():
    losses = uniform(3, 50) ** 2
    torch.testing.assert_close(
        betting_bound(3 * losses, 0.1, 3.0), 3 * betting_bound(losses, 0.1), rtol=1e-9, atol=0
    )
    losses = bernoulli(uniform(1, 400), RISING)
    for bound in (0.1, 0.2, 0.3):
        for choose in (learn_then_test, upper_confidence):
            assert choose(3 * losses, 3 * bound, 0.1, 3.0) == choose(losses, bound, 0.1)
        assert conformal_risk(3 * losses, 3 * bound, 3.0) == conformal_risk(losses, bound)


# --- the choice -----------------------------------------------------------------------------------


def bernoulli(u: torch.Tensor, risks: tuple[float, ...]) -> torch.Tensor:
    """Bernoulli losses of these risks, from one uniform a trajectory (..., 1, n) or one each (..., J, n)."""
    return (u < torch.tensor(risks, dtype=torch.float64)[:, None]).double()


RISING = (0.0, 0.02, 0.05, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3, 0.5)


def brute(losses: torch.Tensor, passes) -> int | None:
    """The last setting so that it and all before it pass."""
    passed = [passes(losses[: i + 1]) for i in range(len(losses))]
    good = [j for j in range(len(losses)) if all(passed[: j + 1])]
    return max(good, default=None)


@pytest.mark.parametrize("bound", [0.05, 0.15, 0.25])
@pytest.mark.parametrize("seed", range(4))
def test_choices_equal_brute_force(seed, bound):
    exact = Fraction(bound).limit_denominator(100)

    def tested(tried):
        return naive_p_value(int(tried[-1].sum()), tried.shape[1], exact) <= DELTA

    def corrected(tried):
        return (float(tried.amax(dim=0).sum()) + 1) / (tried.shape[1] + 1) <= bound

    def below(tried):
        return float(betting_bound(tried[-1:], DELTA)) < bound

    shuffled = RISING[:3] + RISING[5:] + RISING[3:5]  # the order need not be right
    for risks in (RISING, shuffled, RISING[6:]):
        losses = bernoulli(uniform(1 + 9 * (seed % 2), 120, seed=seed)[: len(risks)], risks)
        assert learn_then_test(losses, bound, DELTA) == brute(losses, tested)
        assert conformal_risk(losses, bound) == brute(losses, corrected)
        assert upper_confidence(losses, bound, DELTA) == brute(losses, below)


CHOICES = {
    "ltt": lambda losses, bound: learn_then_test(losses, bound, DELTA),
    "ucb": lambda losses, bound: upper_confidence(losses, bound, DELTA),
    "crc": conformal_risk,
}


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_edges(choose):
    assert choose(torch.zeros(1, 1), 0.2) is None  # too few
    assert choose(torch.ones(3, 500), 0.9) is None
    assert choose(torch.zeros(5, 500), 0.1) == 4  # ties: all of them
    assert choose(torch.cat([torch.zeros(2, 500), torch.ones(2, 500)]), 0.1) == 1
    # What comes after a failure is not looked at, however good it is.
    gap = torch.cat([torch.zeros(1, 500), torch.ones(1, 500), torch.zeros(3, 500)])
    assert choose(gap, 0.1) == 0
    assert choose(gap[1:], 0.1) is None


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_a_larger_bound_never_chooses_a_safer_setting(choose):
    losses = bernoulli(uniform(1, 300, seed=3), RISING)
    found = [choose(losses, b) for b in (0.001, 0.02, 0.06, 0.12, 0.2, 0.4, 0.9)]
    indices = [-1 if f is None else f for f in found]
    assert indices == sorted(indices) and indices[0] == -1 and indices[-1] == len(RISING) - 1


def test_conformal_risk_counts_the_trajectory_to_come():
    assert conformal_risk(torch.zeros(1, 49), 0.02) == 0  # (0 + 1) / 50
    assert conformal_risk(torch.zeros(1, 48), 0.02) is None
    crossing = torch.tensor([[0.0, 0.4], [0.4, 0.0]])
    torch.testing.assert_close(
        conformal_statistics(crossing), torch.tensor([1.4, 1.8], dtype=torch.float64) / 3
    )


@pytest.mark.parametrize(
    ("losses", "alpha", "delta", "loss_bound", "error", "message"),
    [
        (torch.zeros(3), 0.1, 0.1, 1.0, ShapeError, r"\(J, n\), got \(3,\)"),
        (torch.zeros(3, 0), 0.1, 0.1, 1.0, ShapeError, r"got \(3, 0\)"),
        (torch.full((1, 2), 1.5), 0.1, 0.1, 1.0, ConfigError, r"\[0, 1\], got 1.5 to 1.5.*Clip"),
        (torch.full((1, 2), -0.1), 0.1, 0.1, 1.0, ConfigError, "got -0.1 to"),
        (torch.full((1, 2), math.nan), 0.1, 0.1, 1.0, NonFiniteError, "NaN or infinity"),
        (torch.zeros(1, 2), 0.0, 0.1, 1.0, ConfigError, "alpha must lie between 0 and 1, got 0.0"),
        (torch.zeros(1, 2), 2.0, 0.1, 2.0, ConfigError, "alpha must lie between 0 and 2"),
        (torch.zeros(1, 2), 0.1, 1.0, 1.0, ConfigError, "delta must lie between 0 and 1"),
        (torch.zeros(1, 2), 0.1, 0.1, 0.0, ConfigError, "loss_bound must lie between 0 and inf"),
    ],
)
def test_bad_arguments_are_refused(losses, alpha, delta, loss_bound, error, message):
    for choose in (learn_then_test, upper_confidence):
        with pytest.raises(error, match=message):
            choose(losses, alpha, delta, loss_bound)
    if delta < 1:
        with pytest.raises(error, match=message):
            conformal_risk(losses, alpha, loss_bound)
    for risk, n in ((0.5, 0), (1.5, 10), (-0.1, 10)):
        with pytest.raises(ConfigError, match="hoeffding_bentkus: expected n of at least 1"):
            hoeffding_bentkus(risk, n, 0.1)


# --- the guarantees, repeated -----------------------------------------------------------------------

BOUND = 0.1
CROWDED = (0.02, 0.05, 0.08, 0.095, 0.101, 0.105, 0.11, 0.12, 0.15, 0.25)


def beta(risks: tuple[float, ...], n: int, seed: int, strength: float = 2.0) -> torch.Tensor:
    """Losses of these means on each repeat, anywhere in [0, 1], each setting drawn by itself."""
    means = torch.tensor(risks, dtype=torch.float64)[:, None].expand(REPEATS, -1, n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.distributions.Beta(strength * means, strength * (1 - means)).sample()


JUST_ABOVE = (BOUND * 1.001,)
# From a number of trajectories and a seed: losses of all repeats, of shape (REPEATS, J, n).
FAMILIES = {
    # One setting, as good as on the boundary: all the error probability there is.
    "bernoulli": (JUST_ABOVE, lambda n, s: bernoulli(uniform(REPEATS, 1, n, seed=s), JUST_ABOVE)),
    "beta": (JUST_ABOVE, lambda n, s: beta(JUST_ABOVE, n, s)),
    "narrow": (JUST_ABOVE, lambda n, s: beta(JUST_ABOVE, n, s, strength=40.0)),
    # Candidates that crowd around the bound: losses that rise together, and losses that do not.
    "nested": (CROWDED, lambda n, s: bernoulli(uniform(REPEATS, 1, n, seed=s), CROWDED)),
    "apart": (
        CROWDED,
        lambda n, s: bernoulli(uniform(REPEATS, len(CROWDED), n, seed=s), CROWDED),
    ),
    "beta crowded": (CROWDED, lambda n, s: beta(CROWDED, n, s)),
    # Every setting but the first is wrong, by less than any test can see.
    "plateau": ((0.02, *[0.101] * 9), lambda n, s: beta((0.02, *[0.101] * 9), n, s)),
}


@functools.lru_cache(maxsize=1)
def draws(family: str, n: int) -> torch.Tensor:
    return FAMILIES[family][1](n, 1000 * n)


def repeated(family: str, n: int, choose) -> list[float]:
    """True risk of what each of the repeats chose; 0 where it refused."""
    risks, _ = FAMILIES[family]
    chosen = [choose(losses, BOUND) for losses in draws(family, n)]
    return [0.0 if j is None else risks[j] for j in chosen]


def violations(found: list[float]) -> int:
    return sum(risk > BOUND for risk in found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [40, 400])
def test_guarantees_with_probability_hold(family, n):
    for method in ("ltt", "ucb"):
        assert violations(repeated(family, n, CHOICES[method])) <= ALLOWED


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [20, 200])
def test_the_guarantee_in_expectation_holds(family, n):
    found = repeated(family, n, conformal_risk)
    spread = torch.tensor(found).std().item() / math.sqrt(REPEATS)
    assert sum(found) / REPEATS <= BOUND + 3 * spread


def test_certificates_are_not_just_refusals():
    # With many trajectories each method takes the setting next to the bound, on nearly every repeat.
    for choose in CHOICES.values():
        found = repeated("nested", 4000, choose)
        assert sum(risk >= 0.08 for risk in found) > 0.95 * REPEATS
    # Where losses vary little, betting sees farther than Hoeffding and Bentkus.
    narrow = beta((0.05, 0.085), 400, 0, strength=40.0)[0]
    assert (
        upper_confidence(narrow, BOUND, DELTA) == 1 and learn_then_test(narrow, BOUND, DELTA) == 0
    )


def test_conformal_risk_wastes_no_more_than_it_must():
    # On fine candidates the expectation is at least bound - 2 B / (n + 1).
    risks = tuple(torch.linspace(0, 0.4, 401).tolist())
    n = 50
    found = []
    for i in range(REPEATS):
        j = conformal_risk(bernoulli(uniform(1, n, seed=i), risks), BOUND)
        found.append(0.0 if j is None else risks[j])
    spread = torch.tensor(found).std().item() / math.sqrt(REPEATS)
    mean = sum(found) / REPEATS
    assert BOUND - 2 / (n + 1) - 3 * spread <= mean <= BOUND + 3 * spread


# --- planted violations: the simulation must be able to fail --------------------------------------


def naive(losses: torch.Tensor, bound: float) -> int | None:
    """The riskiest setting whose observed risk is below the bound."""
    below = (losses.mean(dim=1) < bound).nonzero().flatten().tolist()
    return max(below, default=None)


def off_by_one(losses: torch.Tensor, bound: float) -> int | None:
    """Fixed-sequence testing that returns the setting that failed."""
    found = learn_then_test(losses, bound, DELTA)
    return min(0 if found is None else found + 1, len(losses) - 1)


def sorted_first(losses: torch.Tensor) -> int | None:
    """Tests in the order of the observed risk: candidates ordered on the seeds that certify."""
    order = losses.mean(dim=1).argsort()
    found = learn_then_test(losses[order], BOUND, DELTA)
    return None if found is None else int(order[found])


def uncorrected(losses: torch.Tensor, bound: float) -> int | None:
    """Conformal risk control without the term for the trajectory to come."""
    passed = losses.cummax(dim=0).values.mean(dim=1) <= bound
    return int(passed.sum()) - 1 if bool(passed[0]) else None


@pytest.mark.parametrize(
    "family", ["bernoulli", "beta", "nested", "apart", "beta crowded", "plateau"]
)
def test_naive_selection_is_caught(family):
    assert violations(repeated(family, 400, naive)) > 1.5 * ALLOWED


@pytest.mark.parametrize("family", ["bernoulli", "beta", "narrow", "plateau"])
def test_returning_the_setting_that_failed_is_caught(family):
    assert violations(repeated(family, 400, off_by_one)) > 1.5 * ALLOWED


def test_candidates_ordered_on_the_calibration_split_are_caught():
    risks = (0.101,) * 100
    draws = [bernoulli(uniform(100, 100, seed=i), risks) for i in range(REPEATS)]
    caught = sum(sorted_first(losses) is not None for losses in draws)
    assert caught > 1.5 * ALLOWED
    assert sum(learn_then_test(losses, BOUND, DELTA) is not None for losses in draws) <= ALLOWED


def test_a_missing_correction_is_caught():
    risks = tuple(torch.linspace(0, 1, 101).tolist())
    totals = {}
    for name, choose in (("with", conformal_risk), ("without", uncorrected)):
        found = [choose(bernoulli(uniform(1, 20, seed=i), risks), BOUND) for i in range(REPEATS)]
        values = torch.tensor([0.0 if j is None else risks[j] for j in found])
        totals[name] = (float(values.mean()), float(values.std()) / math.sqrt(REPEATS))
    assert totals["with"][0] <= BOUND + 3 * totals["with"][1]
    assert totals["without"][0] > BOUND + 3 * totals["without"][1]
