"""The law L(N, D) = E + A / N^alpha + B / D^beta of Hoffmann et al. (2022, arXiv 2203.15556), approach 3.

It is fitted as Besiroglu et al. (2024, arXiv 2404.10102) do: the objective is a sum over points, not a mean, so that
the optimizer does not stop early, and the parameters are not rounded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.special import huber

from lit_transfusion.errors import InputError
from lit_transfusion.studies.scaling.points import Point, levels, log_losses
from lit_transfusion.wording import counted

DELTA = 1e-3  # of the Huber loss (Hoffmann et al., 3.3)
EXPONENTS = np.linspace(0.1, 2, 4)  # starts of alpha and beta; those of Hoffmann et al. are also between 0 and 2
BOUNDS = [(None, None), (0, 2), (None, None), (0, 2), (None, None)]  # of a, alpha, b, beta, e
NUM_STEPS = 150  # of `gauss_newton`


class PowerLaw(NamedTuple):
    """L = E + A / N^alpha + B / D^beta. Each field is a number, or (resamples,)."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def predict(self, parameters: float, tokens: float) -> float:
        """The loss of a model with N parameters after D tokens."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def exponent(self) -> float:
        """The a of the best N for C FLOPs, which grows as C^a. The best D grows as C^(1 - a)."""
        return self.beta / (self.alpha + self.beta)

    def best_parameters(self, flops: float) -> float:
        """The N with the lowest loss for C FLOPs, if C = 6 N D (Hoffmann et al., eq. 4). The best D is C / (6 N)."""
        factor = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return factor * (flops / 6) ** self.exponent


def fit_power_law(points: Sequence[Point], column: str) -> PowerLaw:
    """Fit the law to a loss.

    Raises:
        InputError: A loss has no logarithm, the points are of several models, or they are too few.
    """
    return PowerLaw(*map(float, law_of(optimum(points, column), points)))


def refit_power_law(points: Sequence[Point], column: str, logs: np.ndarray) -> PowerLaw:
    """Fit the law to each resample of a loss, so that `interval(refit_power_law(...).alpha)` is the interval of alpha.

    All fits start from that of the loss itself, and are done at once, in a second. In the simulations of
    `resampled_log_losses`, the intervals of E, A, alpha, the exponent and the loss at 19 times the FLOPs contain the
    truth in 93 to 98 % of the cases, and those of B and beta, which are a little too wide, in 97 to 100 %.

    Args:
        points: Points of one model.
        column: The loss.
        logs: (resamples, points), from `resampled_log_losses`.

    Raises:
        InputError: A loss has no logarithm, the points are of several models, or they are too few.
    """
    start = optimum(points, column)
    start[4] = max(start[4], logs.min(initial=np.inf) - 2)  # an E of almost 0 has no slope in e
    return law_of(gauss_newton(np.tile(start, (len(logs), 1)), centred(points), logs)[0], points)


def optimum(points: Sequence[Point], column: str) -> np.ndarray:
    """The theta (5,) with the lowest objective.

    Hoffmann et al. start L-BFGS at each point of a grid of all five parameters. For given exponents, E, A and B are a
    linear problem (arXiv 2603.22339), so a grid of exponents is enough. `gauss_newton` finds the best of their optima,
    and L-BFGS confirms it.
    """
    logs, sizes = log_losses(points, column), centred(points)
    check_enough(points)
    starts = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            terms = np.exp([-alpha * sizes[0], -beta * sizes[1], np.zeros(len(logs))] - logs)
            factors, _ = nnls(terms.T, np.ones(len(logs)))
            a, b, e = np.log(np.maximum(factors, 1e-3 * np.exp(logs.min())))
            starts.append([a, alpha, b, beta, e])
    thetas, values = gauss_newton(np.array(starts), sizes, np.tile(logs, (len(starts), 1)))
    options = {"ftol": 1e-12, "gtol": 1e-8}
    best = thetas[values.argmin()]
    return minimize(objective, best, (sizes, logs), "L-BFGS-B", jac=True, bounds=BOUNDS, options=options).x


def objective(theta: np.ndarray, sizes: np.ndarray, logs: np.ndarray) -> tuple[float, np.ndarray]:
    """The Huber loss of the log losses, divided by its delta, and its gradient (Hoffmann et al., 3.3).

    Args:
        theta: (5,), a, alpha, b, beta and e, where A = exp(a), B = exp(b) and E = exp(e) for centred N and D.
        sizes: (2, points), from `centred`.
        logs: (points,), the log losses.
    """
    predicted, jacobian = log_sum_exp(theta[None], sizes)
    residuals = predicted[0] - logs
    return huber(DELTA, residuals).sum() / DELTA, np.clip(residuals / DELTA, -1, 1) @ jacobian[0]


def log_sum_exp(thetas: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted log losses (resamples, points), and their derivatives (resamples, points, 5)."""
    a, alpha, b, beta, e = thetas.T[:, :, None]
    terms = np.stack([a - alpha * sizes[0], b - beta * sizes[1], np.broadcast_to(e, (len(thetas), sizes.shape[1]))])
    largest = terms.max(0)
    shares = np.exp(terms - largest)
    total = shares.sum(0)
    shares /= total
    jacobian = np.stack([shares[0], -shares[0] * sizes[0], shares[1], -shares[1] * sizes[1], shares[2]], axis=-1)
    return largest + np.log(total), jacobian


def gauss_newton(thetas: np.ndarray, sizes: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimize the objective of all resamples at once, by Levenberg and Marquardt's steps with the weights of Huber.

    Args:
        thetas: (resamples, 5), the starts, as in `objective`.
        sizes: (2, points), from `centred`.
        logs: (resamples, points), the log losses.

    Returns:
        The optima (resamples, 5) and the values of the objective (resamples,).
    """
    proposed, values, damping = thetas, np.full(len(logs), np.inf), np.full(len(logs), 1e-3)
    for _ in range(NUM_STEPS):
        reached = huber(DELTA, log_sum_exp(proposed, sizes)[0] - logs).sum(1) / DELTA
        better = reached < values
        thetas, values = np.where(better[:, None], proposed, thetas), np.where(better, reached, values)
        damping = np.clip(damping * np.where(better, 0.2, 5), 1e-8, 1e8)
        predicted, jacobian = log_sum_exp(thetas, sizes)
        residuals = predicted - logs
        weighted = (jacobian / np.maximum(np.abs(residuals), DELTA)[..., None]).swapaxes(1, 2)
        hessian = weighted @ jacobian
        diagonal = np.einsum("rii->ri", hessian)  # a view
        diagonal += damping[:, None] * diagonal + 1e-9
        proposed = thetas - np.linalg.solve(hessian, weighted @ residuals[..., None])[..., 0]
        proposed[:, [1, 3]] = proposed[:, [1, 3]].clip(*BOUNDS[1])
    return thetas, values


def centred(points: Sequence[Point]) -> np.ndarray:
    """(2, points), log N and log D minus their means, so that A and alpha are less correlated: faster fits."""
    sizes = np.log([[point.parameters, point.tokens] for point in points]).T
    return sizes - sizes.mean(1, keepdims=True)


def law_of(thetas: np.ndarray, points: Sequence[Point]) -> PowerLaw:
    """The law of one theta (5,) or of several (resamples, 5)."""
    a, alpha, b, beta, e = thetas.T
    mean_n, mean_d = np.log([[point.parameters, point.tokens] for point in points]).mean(0)
    return PowerLaw(np.exp(e), np.exp(a + alpha * mean_n), alpha, np.exp(b + beta * mean_d), beta)


def check_enough(points: Sequence[Point]) -> None:
    """Raise InputError if the points do not determine the five parameters."""
    sizes, tokens = levels([point.parameters for point in points]), levels([point.tokens for point in points])
    ratios = levels([point.tokens / point.parameters for point in points])
    has = {
        "size": (sizes.max() + 1, 3),
        "token count": (tokens.max() + 1, 3),
        "token-to-parameter ratio": (ratios.max() + 1, 3),
        "size-and-token pair": (len({*zip(sizes, tokens, strict=True)}), 5),
    }
    if any(number < least for number, least in has.values()):
        found = ", ".join(counted(number, noun) for noun, (number, _) in has.items())
        needed = ", ".join(counted(least, noun) for noun, (_, least) in has.items())
        raise InputError(f"too few points for E + A / N^alpha + B / D^beta: found {found}; use at least {needed}")
