r"""What may be promised about trajectories that nobody has run yet. Tensors only, no models.

The error of a trajectory is a loss :math:`\ell` in :math:`[0, B]`, and the risk of a setting is its
mean :math:`R = E[\ell]` over all trajectories there could be. Settings are put in order from the safest
to the riskiest *before* the losses are looked at, and each is measured on the same n trajectories.
Every function here takes losses of shape (J, n), walks the settings in that order, and stops at the
first that fails its test, so that one error probability is enough for all of them.

The naive choice, the riskiest setting with :math:`\hat R \le \alpha`, promises nothing: near the bound
it is wrong every other time, and more often the more settings are tried.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from exitkit.errors import ConfigError, NonFiniteError, ShapeError


def hoeffding_bentkus(risk: float, n: int, bound: float) -> float:
    r"""P-value of the hypothesis that the risk exceeds a bound, for losses in [0, 1].

    .. math:: p = \min\left(e^{-n\,\mathrm{KL}(\min(\hat R, \alpha)\,\|\,\alpha)},\;
              e\, P\left[\mathrm{Bin}(n, \alpha) \le \lceil n \hat R \rceil\right]\right)

    Promise: if the true risk is above :math:`\alpha`, then :math:`P[p \le u] \le u` for every u.
    Assumes n independent losses of one distribution in [0, 1]; nothing about its form.

    References:
        | Distribution-Free, Risk-Controlling Prediction Sets
        | (Bates, Angelopoulos, Lei, Malik, Jordan, 2021), https://arxiv.org/abs/2101.02703
        | Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control
        | (Angelopoulos, Bates, Candes, Jordan, Lei, 2021), https://arxiv.org/abs/2110.01052

    Arguments:
        risk: Mean of the losses :math:`\hat R`, in [0, 1].
        n: Number of losses, at least 1.
        bound: The bound :math:`\alpha`, in (0, 1).

    Returns:
        The p-value, in (0, 1].

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> round(hoeffding_bentkus(0.0, 100, 0.02), 4)
        0.1326
    """
    _inside("bound", bound, 1.0)
    if n < 1 or not 0 <= risk <= 1:
        raise ConfigError(
            f"hoeffding_bentkus: expected n of at least 1 and a risk in [0, 1], got n={n} and "
            f"risk={risk!r}. Divide losses by the largest there can be."
        )
    low = min(risk, bound)
    divergence = _times_log(low, bound) + _times_log(1 - low, 1 - bound)
    # The mean of k ones among n is k / n only to rounding, which must not push the ceiling up by one.
    count = min(n, math.ceil(n * risk - 1e-9))
    bentkus = 1 + _log_binomial_cdf(count, n, bound)
    return math.exp(min(-n * divergence, bentkus, 0.0))


def learn_then_test(losses: Tensor, bound: float, eps: float, largest: float = 1.0) -> int | None:
    r"""The riskiest setting certified by fixed-sequence testing.

    The hypotheses :math:`R_j > \alpha` are tested in the given order with Hoeffding-Bentkus p-values;
    the first with :math:`p_j > \varepsilon` ends it, and the setting *before* it is returned.

    Promise: with probability at least :math:`1 - \varepsilon` over the trajectories measured, the risk
    of the setting returned, and of every safer one, is at most :math:`\alpha`.
    Assumes independent trajectories of one distribution and an order fixed without them. Losses of
    different settings may depend on each other, and risk need not rise with the order.

    References:
        | Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control
        | (Angelopoulos, Bates, Candes, Jordan, Lei, 2021), https://arxiv.org/abs/2110.01052

    Arguments:
        losses: From the safest setting to the riskiest, in [0, largest], with shape (J, n).
        bound: The bound :math:`\alpha` on the mean loss, in (0, largest).
        eps: The probability of error :math:`\varepsilon`, in (0, 1).
        largest: The largest loss there can be, B.

    Returns:
        Index of the setting, or None if even the safest fails.

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    unit = _unit(losses, bound, largest, eps)
    for j, risk in enumerate(unit.mean(dim=1).tolist()):
        if hoeffding_bentkus(min(risk, 1.0), unit.shape[1], bound / largest) > eps:
            return j - 1 if j else None
    return len(unit) - 1


def conformal_risk(losses: Tensor, bound: float, largest: float = 1.0) -> int | None:
    r"""The riskiest setting by conformal risk control.

    .. math:: \hat R_j \le \frac{(n + 1)\,\alpha - B}{n} \quad\Leftrightarrow\quad
              \frac{n \hat R_j + B}{n + 1} \le \alpha

    where :math:`\hat R_j` is the mean over trajectories of the largest loss at setting j or any safer
    one: the losses of a trajectory are made to rise along the order.

    Promise: the *expected* loss of a new trajectory is at most :math:`\alpha`, averaged over the
    calibrations too. A single calibration may lie above it. None counts as no loss: whoever is refused
    runs the full model.
    Assumes that measured and new trajectories are exchangeable, and an order fixed without them.

    References:
        | Conformal Risk Control
        | (Angelopoulos, Bates, Fisch, Lei, Schuster, 2022), https://arxiv.org/abs/2208.02814

    Arguments:
        losses: From the safest setting to the riskiest, in [0, largest], with shape (J, n).
        bound: The bound :math:`\alpha` on the mean loss, in (0, largest).
        largest: The largest loss there can be, B.

    Returns:
        Index of the setting, or None if even the safest fails.

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    _unit(losses, bound, largest)
    return _before_failure(conformal_figures(losses, largest) <= bound)


def conformal_figures(losses: Tensor, largest: float = 1.0) -> Tensor:
    r"""What conformal risk control holds against the bound.

    Arguments:
        losses: From the safest setting to the riskiest, in [0, largest], with shape (J, n).
        largest: The largest loss there can be, B.

    Returns:
        :math:`(n \hat R_j + B) / (n + 1)` of each setting, with shape (J).
    """
    rising = losses.double().cummax(dim=0).values
    return (rising.sum(dim=1) + largest) / (losses.shape[1] + 1)


def upper_confidence(losses: Tensor, bound: float, eps: float, largest: float = 1.0) -> int | None:
    r"""The riskiest setting whose upper confidence bound, and that of all safer ones, is below a bound.

    The bound of `betting_bound` is compared with :math:`\alpha` setting by setting.

    Promise: with probability at least :math:`1 - \varepsilon` over the trajectories measured, the risk
    of the setting returned, and of every safer one, is below :math:`\alpha`. It is often sharper than
    Learn then Test with Hoeffding-Bentkus, since it profits from losses that vary little.
    Assumes independent trajectories of one distribution, in the order they were drawn, and an order of
    settings fixed without them: each comparison is a test at level :math:`\varepsilon`, and they stop at
    the first that fails, so risk need not rise with the order.

    References:
        | Distribution-Free, Risk-Controlling Prediction Sets
        | (Bates, Angelopoulos, Lei, Malik, Jordan, 2021), https://arxiv.org/abs/2101.02703

    Arguments:
        losses: From the safest setting to the riskiest, in [0, largest], with shape (J, n).
        bound: The bound :math:`\alpha` on the mean loss, in (0, largest).
        eps: The probability of error :math:`\varepsilon`, in (0, 1).
        largest: The largest loss there can be, B.

    Returns:
        Index of the setting, or None if even the safest fails.

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    unit = _unit(losses, bound, largest, eps)
    alpha = torch.full((len(unit),), bound / largest, dtype=torch.float64)
    # Wealth grows with the mean it is held against: the bound is below alpha iff alpha is refuted.
    return _before_failure(_log_wealth(unit, alpha, eps) > -math.log(eps))


def betting_bound(losses: Tensor, eps: float, largest: float = 1.0) -> Tensor:
    r"""Upper confidence bound on the mean of bounded losses, by betting against every larger mean.

    .. math::
        \hat\mu_i &= \frac{1/2 + \sum_{j \le i} \ell_j}{1 + i}, \quad
        \hat\sigma_i^2 = \frac{1/4 + \sum_{j \le i} (\ell_j - \hat\mu_j)^2}{1 + i}, \quad
        \nu_i = \min\left(1, \sqrt{\frac{2 \log(1 / \varepsilon)}{n \hat\sigma_{i-1}^2}}\right), \\
        K_i(R) &= \prod_{j \le i} \left(1 - \nu_j (\ell_j - R)\right), \quad
        R^+ = \inf\left\{R \ge 0 : \max_i K_i(R) > 1 / \varepsilon\right\}

    for losses in [0, 1]; others are scaled by B.

    Promise: each :math:`R^+` is at least the true mean with probability at least
    :math:`1 - \varepsilon`. Assumes independent losses of one distribution, in the order they were drawn.

    References:
        | Estimating Means of Bounded Random Variables by Betting
        | (Waudby-Smith, Ramdas, 2020), https://arxiv.org/abs/2010.09686
        | Distribution-Free, Risk-Controlling Prediction Sets
        | (Bates, Angelopoulos, Lei, Malik, Jordan, 2021), https://arxiv.org/abs/2101.02703

    Arguments:
        losses: In [0, largest], with shape (J, n).
        eps: The probability of error :math:`\varepsilon`, in (0, 1).
        largest: The largest loss there can be, B.

    Returns:
        The bounds, in (0, largest], with shape (J).

    Raises:
        ConfigError: If an argument or a loss is out of range.
        ShapeError: If losses are not of shape (J, n).
        NonFiniteError: If a loss is NaN or infinite.
    """
    unit = _unit(losses, None, largest, eps)
    low = torch.zeros(len(unit), dtype=torch.float64)
    high = torch.ones_like(low)
    for _ in range(50):
        middle = (low + high) / 2
        refuted = _log_wealth(unit, middle, eps) > -math.log(eps)
        low, high = torch.where(refuted, low, middle), torch.where(refuted, middle, high)
    return high * largest


def _log_wealth(unit: Tensor, mean: Tensor, eps: float) -> Tensor:
    """Largest log-wealth on the way of who bets that the losses have a smaller mean, shape (J)."""
    n = unit.shape[1]
    index = torch.arange(1, n + 1, dtype=torch.float64)
    centre = (0.5 + unit.cumsum(dim=1)) / (1 + index)
    spread = (0.25 + (unit - centre).square().cumsum(dim=1)) / (1 + index)
    # A bet may rest on what came before it only.
    before = torch.cat(
        [torch.full((len(unit), 1), 0.25, dtype=torch.float64), spread[:, :-1]], dim=1
    )
    bets = (2 * -math.log(eps) / (n * before)).sqrt().clamp(max=1.0)
    return (1 - bets * (unit - mean[:, None])).log().cumsum(dim=1).amax(dim=1)


def _before_failure(passed: Tensor) -> int | None:
    """Index of the last setting before the first failure, or None."""
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


def _unit(losses: Tensor, bound: float | None, largest: float, eps: float | None = None) -> Tensor:
    """Checks everything and returns the losses in [0, 1], in float64."""
    if losses.dim() != 2 or not losses.numel():
        raise ShapeError(
            f"Expected losses of J settings on n trajectories, (J, n), got {tuple(losses.shape)}."
        )
    _inside("largest", largest, math.inf)
    if bound is not None:
        _inside("bound", bound, largest)
    if eps is not None:
        _inside("eps", eps, 1.0)
    losses = losses.detach().double().cpu()
    if not bool(torch.isfinite(losses).all()):
        raise NonFiniteError("There is NaN or infinity among the losses. Check what measured them.")
    low, high = losses.aminmax()
    if low < 0 or high > largest:
        raise ConfigError(
            f"Losses must lie in [0, {largest:g}], got {float(low):g} to {float(high):g}. Clip them at "
            "`largest`, and say so: what is promised is the mean of the clipped loss."
        )
    return losses / largest
