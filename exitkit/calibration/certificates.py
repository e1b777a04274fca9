r"""Bounds on the risk of trajectories that nobody has run yet. Tensors only, no models.

The error of a trajectory is a loss :math:`\ell` in :math:`[0, B]`, and the risk of a candidate is its
mean :math:`R = E[\ell]` over all trajectories there could be. Candidates are put in order from the safest
to the riskiest *before* the losses are looked at, and each is measured on the same n trajectories.
Every function here takes losses of shape (J, n), tests the candidates in that order, and stops at the
first that fails its test, so that one error probability is enough for all of them.

The naive choice, the riskiest candidate with :math:`\hat R \le \alpha`, guarantees nothing: near the bound
it is wrong every other time, and more often the more candidates are tried.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitkit.errors import ConfigError, NonFiniteError, ShapeError


def hoeffding_bentkus(risk: float, n: int, alpha: float) -> float:
    r"""P-value of the hypothesis that the risk exceeds a bound, for losses in [0, 1].

    .. math:: p = \min\left(e^{-n\,\mathrm{KL}(\min(\hat R, \alpha)\,\|\,\alpha)},\;
              e\, P\left[\mathrm{Bin}(n, \alpha) \le \lceil n \hat R \rceil\right]\right)

    Guarantee: if the true risk is above :math:`\alpha`, then :math:`P[p \le u] \le u` for every u.
    Assumes n independent losses of one distribution in [0, 1]; nothing about its form.

    References:
        | Distribution-Free, Risk-Controlling Prediction Sets
        | (Bates, Angelopoulos, Lei, Malik, Jordan, 2021), https://arxiv.org/abs/2101.02703
        | Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control
        | (Angelopoulos, Bates, Candes, Jordan, Lei, 2021), https://arxiv.org/abs/2110.01052

    Arguments:
        risk: Mean of the losses :math:`\hat R`, in [0, 1].
        n: Number of losses, at least 1.
        alpha: The bound :math:`\alpha`, in (0, 1).

    Returns:
        The p-value, in (0, 1].

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> round(hoeffding_bentkus(0.0, 100, 0.02), 4)
        0.1326
    """
    _inside("alpha", alpha, 1.0)
    if n < 1 or not 0 <= risk <= 1:
        raise ConfigError(
            f"hoeffding_bentkus: expected n of at least 1 and a risk in [0, 1], got n={n} and "
            f"risk={risk!r}. Divide losses by the largest there can be."
        )
    low = min(risk, alpha)
    divergence = _times_log(low, alpha) + _times_log(1 - low, 1 - alpha)
    # The mean of k ones among n is k / n only to rounding, which must not push the ceiling up by one.
    count = min(n, math.ceil(n * risk - 1e-9))
    bentkus = 1 + _log_binomial_cdf(count, n, alpha)
    return math.exp(min(-n * divergence, bentkus, 0.0))


def learn_then_test(
    losses: Tensor, alpha: float, delta: float, loss_bound: float = 1.0
) -> int | None:
    r"""The riskiest candidate certified by fixed-sequence testing.

    The hypotheses :math:`R_j > \alpha` are tested in the given order with Hoeffding-Bentkus p-values;
    the first with :math:`p_j > \delta` ends it, and the candidate *before* it is returned.

    Guarantee: with probability at least :math:`1 - \delta` over the trajectories measured, the risk
    of the candidate returned, and of every safer one, is at most :math:`\alpha`.
    Assumes independent trajectories of one distribution and an order fixed without them. Losses of
    different candidates may depend on each other, and risk need not rise with the order.

    References:
        | Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control
        | (Angelopoulos, Bates, Candes, Jordan, Lei, 2021), https://arxiv.org/abs/2110.01052

    Arguments:
        losses: From the safest candidate to the riskiest, in [0, loss_bound], with shape (J, n).
        alpha: The bound :math:`\alpha` on the mean loss, in (0, loss_bound).
        delta: The probability of error :math:`\delta`, in (0, 1).
        loss_bound: The largest loss there can be, B.

    Returns:
        Index of the candidate, or None if even the safest fails.

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    unit = _unit(losses, alpha, loss_bound, delta)
    for j, risk in enumerate(unit.mean(dim=1).tolist()):
        if hoeffding_bentkus(min(risk, 1.0), unit.shape[1], alpha / loss_bound) > delta:
            return j - 1 if j else None
    return len(unit) - 1


def conformal_risk(losses: Tensor, alpha: float, loss_bound: float = 1.0) -> int | None:
    r"""The riskiest candidate by conformal risk control.

    .. math:: \hat R_j \le \frac{(n + 1)\,\alpha - B}{n} \quad\Leftrightarrow\quad
              \frac{n \hat R_j + B}{n + 1} \le \alpha

    where :math:`\hat R_j` is the mean over trajectories of the largest loss at candidate j or any safer
    one: the losses of a trajectory are made to rise along the order.

    Guarantee: the *expected* loss of a new trajectory is at most :math:`\alpha`, averaged over the
    calibrations too. A single calibration may lie above it. None counts as no loss: whoever is refused
    runs the full model.
    Assumes that measured and new trajectories are exchangeable, and an order fixed without them.

    References:
        | Conformal Risk Control
        | (Angelopoulos, Bates, Fisch, Lei, Schuster, 2022), https://arxiv.org/abs/2208.02814

    Arguments:
        losses: From the safest candidate to the riskiest, in [0, loss_bound], with shape (J, n).
        alpha: The bound :math:`\alpha` on the mean loss, in (0, loss_bound).
        loss_bound: The largest loss there can be, B.

    Returns:
        Index of the candidate, or None if even the safest fails.

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    _unit(losses, alpha, loss_bound)
    return _before_failure(conformal_statistics(losses, loss_bound) <= alpha)


def conformal_statistics(losses: Tensor, loss_bound: float = 1.0) -> Tensor:
    r"""What conformal risk control holds against the bound.

    Arguments:
        losses: From the safest candidate to the riskiest, in [0, loss_bound], with shape (J, n).
        loss_bound: The largest loss there can be, B.

    Returns:
        :math:`(n \hat R_j + B) / (n + 1)` of each candidate, with shape (J).
    """
    rising = losses.double().cummax(dim=0).values
    return (rising.sum(dim=1) + loss_bound) / (losses.shape[1] + 1)


def upper_confidence(
    losses: Tensor, alpha: float, delta: float, loss_bound: float = 1.0
) -> int | None:
    r"""The riskiest candidate whose upper confidence bound, and that of all safer ones, is below a bound.

    The bound of `betting_bound` is compared with :math:`\alpha` candidate by candidate.

    Guarantee: with probability at least :math:`1 - \delta` over the trajectories measured, the risk
    of the candidate returned, and of every safer one, is below :math:`\alpha`. It is often sharper than
    Learn then Test with Hoeffding-Bentkus, since it profits from losses that vary little.
    Assumes independent trajectories of one distribution, in the order they were drawn, and an order of
    candidates fixed without them: each comparison is a test at level :math:`\delta`, and they stop at
    the first that fails, so risk need not rise with the order.

    References:
        | Distribution-Free, Risk-Controlling Prediction Sets
        | (Bates, Angelopoulos, Lei, Malik, Jordan, 2021), https://arxiv.org/abs/2101.02703

    Arguments:
        losses: From the safest candidate to the riskiest, in [0, loss_bound], with shape (J, n).
        alpha: The bound :math:`\alpha` on the mean loss, in (0, loss_bound).
        delta: The probability of error :math:`\delta`, in (0, 1).
        loss_bound: The largest loss there can be, B.

    Returns:
        Index of the candidate, or None if even the safest fails.

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    unit = _unit(losses, alpha, loss_bound, delta)
    means = torch.full((len(unit),), alpha / loss_bound, dtype=torch.float64)
    # Wealth grows with the mean it is held against: the bound is below alpha iff alpha is refuted.
    return _before_failure(_log_wealth(unit, means, delta) > -math.log(delta))


def betting_bound(losses: Tensor, delta: float, loss_bound: float = 1.0) -> Tensor:
    r"""Upper confidence bound on the mean of bounded losses, by betting against every larger mean.

    .. math::
        \hat\mu_i &= \frac{1/2 + \sum_{j \le i} \ell_j}{1 + i}, \quad
        \hat\sigma_i^2 = \frac{1/4 + \sum_{j \le i} (\ell_j - \hat\mu_j)^2}{1 + i}, \quad
        \nu_i = \min\left(1, \sqrt{\frac{2 \log(1 / \delta)}{n \hat\sigma_{i-1}^2}}\right), \\
        K_i(R) &= \prod_{j \le i} \left(1 - \nu_j (\ell_j - R)\right), \quad
        R^+ = \inf\left\{R \ge 0 : \max_i K_i(R) > 1 / \delta\right\}

    for losses in [0, 1]; others are scaled by B.

    Guarantee: each :math:`R^+` is at least the true mean with probability at least
    :math:`1 - \delta`. Assumes independent losses of one distribution, in the order they were drawn.

    References:
        | Estimating Means of Bounded Random Variables by Betting
        | (Waudby-Smith, Ramdas, 2020), https://arxiv.org/abs/2010.09686
        | Distribution-Free, Risk-Controlling Prediction Sets
        | (Bates, Angelopoulos, Lei, Malik, Jordan, 2021), https://arxiv.org/abs/2101.02703

    Arguments:
        losses: In [0, loss_bound], with shape (J, n).
        delta: The probability of error :math:`\delta`, in (0, 1).
        loss_bound: The largest loss there can be, B.

    Returns:
        The bounds, in (0, loss_bound], with shape (J).

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    unit = _unit(losses, None, loss_bound, delta)
    low = torch.zeros(len(unit), dtype=torch.float64)
    high = torch.ones_like(low)
    for _ in range(50):
        middle = (low + high) / 2
        refuted = _log_wealth(unit, middle, delta) > -math.log(delta)
        low, high = torch.where(refuted, low, middle), torch.where(refuted, middle, high)
    return high * loss_bound


def _log_wealth(unit: Tensor, mean: Tensor, delta: float) -> Tensor:
    """Largest log-wealth on the way of who bets that the losses have a smaller mean, shape (J)."""
    n = unit.shape[1]
    index = torch.arange(1, n + 1, dtype=torch.float64)
    centre = (0.5 + unit.cumsum(dim=1)) / (1 + index)
    spread = (0.25 + (unit - centre).square().cumsum(dim=1)) / (1 + index)
    # A bet may rest on what came before it only.
    before = torch.cat(
        [torch.full((len(unit), 1), 0.25, dtype=torch.float64), spread[:, :-1]], dim=1
    )
    bets = (2 * -math.log(delta) / (n * before)).sqrt().clamp(max=1.0)
    return (1 - bets * (unit - mean[:, None])).log().cumsum(dim=1).amax(dim=1)


def _before_failure(passed: Tensor) -> int | None:
    """Index of the last candidate before the first failure, or None."""
    count = int(passed.long().cumprod(dim=0).sum())
    return count - 1 if count else None


def _log_binomial_cdf(k: int, n: int, p: float) -> float:
    if k >= n:
        return 0.0
    i = torch.arange(k + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)
    return float(torch.logsumexp(ways + i * math.log(p) + (n - i) * math.log1p(-p), dim=0))


def _times_log(a: float, b: float) -> float:
    return a * math.log(a / b) if a > 0 else 0.0


def _inside(name: str, value: float, end: float) -> None:
    if not 0 < value < end:
        raise ConfigError(f"{name} must lie between 0 and {end:g}, got {value!r}.")


def _unit(
    losses: Tensor, alpha: float | None, loss_bound: float, delta: float | None = None
) -> Tensor:
    """Checks everything and returns the losses in [0, 1], in float64."""
    if losses.dim() != 2 or not losses.numel():
        raise ShapeError(
            f"Expected losses of J candidates on n trajectories, (J, n), got {tuple(losses.shape)}."
        )
    _inside("loss_bound", loss_bound, math.inf)
    if alpha is not None:
        _inside("alpha", alpha, loss_bound)
    if delta is not None:
        _inside("delta", delta, 1.0)
    losses = losses.detach().double().cpu()
    if not bool(torch.isfinite(losses).all()):
        raise NonFiniteError("There is NaN or infinity among the losses. Check what measured them.")
    low, high = losses.aminmax()
    if low < 0 or high > loss_bound:
        raise ConfigError(
            f"Losses must lie in [0, {loss_bound:g}], got {float(low):g} to {float(high):g}. Clip them at "
            "`loss_bound`, and say so: what is bounded is the mean of the clipped loss."
        )
    return losses / loss_bound
