"""Noise schedules: how signal and noise depend on the time t of a diffusion process.

A process ``x_t = alpha(t) (clean + sigma(t) z)`` is the EDM network's ``y = clean + sigma z`` on another scale: with
``y = x / alpha`` and ``sigma = (noise of x) / alpha`` one network serves them all (EDM, section 2 and Table 1). So
samplers run on y and sigma, and a schedule says only which sigma belongs to which t and how x is scaled. In the usual
variance-preserving letters, sigma = sqrt(1 - alpha^2) / alpha, and lambda = log(alpha / noise of x) = -log(sigma).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Name = Literal["vp-linear", "vp-cosine", "ve", "edm"]
Function = Callable[[float], float]

BETA_MIN, BETA_RANGE = 0.1, 19.9  # of the variance-preserving SDE (Song et al., 2021)
COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal (2021)


@dataclass(frozen=True)
class Schedule:
    """One schedule, as functions of floats.

    Attributes:
        sigma: noise level (noise over signal) at time t; rises with t from sigma(0) = 0.
        time: its inverse.
        rate: d sigma / dt.
        preserving: whether x keeps unit variance, alpha = 1 / sqrt(1 + sigma^2); otherwise alpha = 1.
    """

    sigma: Function
    time: Function
    rate: Function
    preserving: bool

    def alpha(self, t: float) -> float:
        """The factor of the clean image in x."""
        return 1 / math.hypot(1, self.sigma(t)) if self.preserving else 1.0

    def alpha_rate(self, t: float) -> float:
        """d log(alpha) / dt."""
        if not self.preserving:
            return 0.0
        sigma = self.sigma(t)
        return -sigma * self.rate(t) / (1 + sigma**2)


def _linear_sigma(t: float) -> float:
    return math.sqrt(math.expm1(BETA_RANGE * t**2 / 2 + BETA_MIN * t))


def _linear_time(sigma: float) -> float:
    twice = 2 * math.log1p(sigma**2)
    return twice / (math.sqrt(BETA_MIN**2 + BETA_RANGE * twice) + BETA_MIN)


def _linear_rate(t: float) -> float:
    sigma = _linear_sigma(t)
    return (BETA_RANGE * t + BETA_MIN) * (sigma + 1 / sigma) / 2


def _angle(t: float) -> float:
    return math.pi / 2 * (t + COSINE_OFFSET) / (1 + COSINE_OFFSET)


def _cosine_sigma(t: float) -> float:
    # cos(a)^2 / cos(b)^2 - 1 as a product of sines, which loses nothing near t = 0
    a, b = _angle(0), _angle(t)
    return math.sqrt(math.sin(b - a) * math.sin(b + a)) / math.cos(b)


def _cosine_time(sigma: float) -> float:
    # tan of the angle: sigma^2 = (1 + tan(b)^2) cos(a)^2 - 1
    a = _angle(0)
    angle = math.atan(math.sqrt(sigma**2 + math.sin(a) ** 2) / math.cos(a))
    return angle * 2 / math.pi * (1 + COSINE_OFFSET) - COSINE_OFFSET


def _cosine_rate(t: float) -> float:
    b = _angle(t)
    slope = math.pi / 2 / (1 + COSINE_OFFSET)
    return math.cos(_angle(0)) ** 2 * math.sin(b) / math.cos(b) ** 3 * slope / _cosine_sigma(t)


SCHEDULES: dict[Name, Schedule] = {
    # alpha = exp(-(b1 - b0) t^2 / 4 - b0 t / 2), t in [0, 1]
    "vp-linear": Schedule(_linear_sigma, _linear_time, _linear_rate, True),
    # alpha = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)), t in [0, 1)
    "vp-cosine": Schedule(_cosine_sigma, _cosine_time, _cosine_rate, True),
    # dx = dw
    "ve": Schedule(math.sqrt, lambda sigma: sigma**2, lambda t: 0.5 / math.sqrt(t), False),
    # time is the noise level
    "edm": Schedule(lambda t: t, lambda sigma: sigma, lambda _: 1.0, False),
}
