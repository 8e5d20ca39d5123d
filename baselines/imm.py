"""Inductive moment matching (Zhou et al., 2025, arXiv 2503.07565): few-step models from data, by matching samples.

f_{s,t} takes x at time t to a sample at the earlier time s. Its samples from t are matched, by the maximum mean
discrepancy over small groups, with its own samples from a time r a little below t.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cmbench.diffusion.preconditioning import expand
from cmbench.errors import UsageError
from cmbench.methods import DIRECT, Method, Model, TrainJob
from cmbench.training.fit import Fit

if TYPE_CHECKING:
    from cmbench.sampling.generate import Sampler


@dataclass(frozen=True)
class Path:
    """A path x_t = alpha_t x + sigma_t e from data (t = 0) to noise (t = 1); e has the data's standard deviation.

    ``ot-fm``: alpha = 1 - t, sigma = t. ``cosine``: alpha = cos(pi t / 2), sigma = sin(pi t / 2). eta = sigma / alpha.
    """

    name: Literal["ot-fm", "cosine"]

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t."""
        if self.name == "ot-fm":
            return 1 - t, t
        return torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)

    def eta(self, t: Tensor) -> Tensor:
        """sigma_t / alpha_t."""
        alpha, sigma = self.alpha_sigma(t)
        return sigma / alpha

    def time(self, eta: Tensor) -> Tensor:
        """The inverse of :meth:`eta`."""
        return eta / (1 + eta) if self.name == "ot-fm" else 2 / math.pi * torch.atan(eta)

    def log_snr_slope(self, t: Tensor) -> Tensor:
        """-d lambda / dt of the log signal-to-noise ratio lambda = 2 log(alpha / sigma)."""
        alpha, sigma = self.alpha_sigma(t)
        return (2 if self.name == "ot-fm" else math.pi) / (alpha * sigma)


@dataclass(frozen=True)
class IMMRecipe:
    """Inductive moment matching.

    Attributes:
        fit: optimisation; the batch is a multiple of ``group``.
        path: the interpolant, see :class:`Path`.
        group: M, samples that share their times and are compared with one another.
        halvings: k; r is where eta is (eta_max - eta_min) / 2^k less than at t.
        t_min, t_max: the range of times.
        a, b: of the weight ``sigmoid(b - lambda) (-dlambda/dt) alpha^a / (alpha^2 + sigma^2) / 2``.
        times: inner times of sampling by NFE ("2" -> one time); another NFE takes equal steps of t.
        dropout: of the network, in training.
        seed: training seed; None takes the run's.
    """

    fit: Fit = field(default_factory=Fit)
    path: Literal["ot-fm", "cosine"] = "ot-fm"
    group: int = 4
    halvings: int = 15
    t_min: float = 0.006
    t_max: float = 0.994
    a: int = 1
    b: float = 5.0
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max < 1:
            raise UsageError(f"imm: need 0 < t_min < t_max < 1, not {self.t_min} and {self.t_max}")
        if self.group < 1 or self.fit.batch_size % self.group:
            raise UsageError(
                f"imm: the batch of {self.fit.batch_size} is not a multiple of group {self.group}"
            )
        if self.halvings < 0:
            raise UsageError(f"imm: halvings must not be negative, got {self.halvings}")


class Bridge(nn.Module):
    """f_{s,t} around a raw network of two conditions, the times t and s ("Simple-EDM", the paper's section 5)."""

    def __init__(self, network: nn.Module, path: Path, sigma_data: float) -> None:
        super().__init__()
        self.network, self.path, self.sigma_data = network, path, sigma_data

    def c_out(self, t: Tensor, s: Tensor) -> Tensor:
        """The (negative) factor of the network's output, zero at s = t."""
        alpha_t, sigma_t = self.path.alpha_sigma(t)
        alpha_s, sigma_s = self.path.alpha_sigma(s)
        return (
            -(alpha_s * sigma_t - sigma_s * alpha_t) / torch.sqrt(alpha_t**2 + sigma_t**2) * self.sigma_data
        )

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """A sample at time ``s`` [B] from ``x`` [B, C, H, W] at ``t`` [B]; ``x`` itself where they are equal."""
        t, s = t.to(x.dtype), s.to(x.dtype)
        alpha_t, sigma_t = self.path.alpha_sigma(t)
        alpha_s, sigma_s = self.path.alpha_sigma(s)
        total = alpha_t**2 + sigma_t**2
        c_in = 1 / (torch.sqrt(total) * self.sigma_data)
        raw: Tensor = self.network((expand(c_in, x) * x).float(), torch.stack([t, s], dim=1).float(), labels)
        c_skip = (alpha_t * alpha_s + sigma_t * sigma_s) / total
        return expand(c_skip, x) * x + expand(self.c_out(t, s), x) * raw.to(x.dtype)


def laplace_mmd(made: Tensor, goal: Tensor, scale: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of groups: ``made``, ``goal`` [G, M, D], ``scale`` [G] -> [G].

    The kernel is ``exp(-scale |a - b| / D)``. All M^2 pairs count (the V-statistic, so that the value is not negative).
    """

    def mean(a: Tensor, b: Tensor) -> Tensor:
        distances = torch.linalg.vector_norm(a[:, :, None] - b[:, None], dim=3).clamp(min=1e-8)
        return torch.exp(-scale[:, None, None] * distances / a.shape[2]).mean((1, 2))

    return mean(made, made) + mean(goal, goal) - 2 * mean(made, goal)


class MomentMatchingObjective:
    """``w(t) MMD^2(f_{s,t}(x_t), stopgrad f_{s,r}(x_r))`` over groups of samples (Algorithm 1)."""

    def __init__(self, recipe: IMMRecipe, sigma_data: float) -> None:
        self.recipe, self.sigma_data, self.path = recipe, sigma_data, Path(recipe.path)
        self.modules: Mapping[str, nn.Module] = {}

    def earlier(self, t: Tensor, s: Tensor) -> Tensor:
        """r(s, t): a constant decrement of eta below t, but not below s."""
        low, high = (self.path.eta(torch.tensor(end)) for end in (self.recipe.t_min, self.recipe.t_max))
        decrement = float(high - low) / 2**self.recipe.halvings
        return torch.maximum(s, self.path.time((self.path.eta(t) - decrement).clamp(min=0)))

    def weight(self, t: Tensor) -> Tensor:
        """The paper's equation 13: [B]."""
        alpha, sigma = self.path.alpha_sigma(t)
        log_snr = 2 * torch.log(alpha / sigma)
        share = torch.sigmoid(self.recipe.b - log_snr) * self.path.log_snr_slope(t) / 2
        return share * alpha**self.recipe.a / (alpha**2 + sigma**2)

    def loss(
        self, network: nn.Module, x: Tensor, labels: Tensor | None, _step: int, rng: torch.Generator
    ) -> Tensor:
        """Losses [B], the same for all samples of a group."""
        size, groups = self.recipe.group, len(x) // self.recipe.group
        low, high = self.recipe.t_min, self.recipe.t_max
        uniform = torch.rand(2, groups, device=x.device, generator=rng)
        t_of_group = low + (high - low) * uniform[0]
        s_of_group = low + (t_of_group - low) * uniform[1]
        t, s = (times.repeat_interleave(size) for times in (t_of_group, s_of_group))
        r = self.earlier(t, s)
        noise = self.sigma_data * torch.randn(x.shape, device=x.device, generator=rng)

        def at(time: Tensor) -> Tensor:
            alpha, sigma = self.path.alpha_sigma(time)
            return expand(alpha, x) * x + expand(sigma, x) * noise  # of one x and e: the DDIM interpolant

        f = Bridge(network, self.path, self.sigma_data)
        made = f(at(t), t, s, labels)
        with torch.no_grad():
            goal = f(at(r), r, s, labels)
        scale = 1 / f.c_out(t_of_group, s_of_group).abs().clamp(min=1e-8)
        shaped = (groups, size, -1)
        mmd = laplace_mmd(made.reshape(shaped), goal.reshape(shaped), scale)
        return (self.weight(t_of_group) * mmd).repeat_interleave(size)

    def after_step(self, _network: nn.Module, _step: int) -> None:
        """Nothing to do."""


def train(job: TrainJob) -> nn.Module:
    """Train from random weights."""
    recipe: IMMRecipe = job.recipe
    return job.fit(job.new_network(), MomentMatchingObjective(recipe, job.noise.sigma_data), recipe.fit)


def sampler(model: Model, recipe: IMMRecipe, nfe: int) -> "Sampler":
    """Pushforward sampling: ``nfe`` jumps from t_max to t_min; float64, returns float32."""
    step = (recipe.t_max - recipe.t_min) / nfe
    inner = recipe.times.get(str(nfe), tuple(recipe.t_max - k * step for k in range(1, nfe)))
    times = (recipe.t_max, *inner, recipe.t_min)
    if any(a <= b for a, b in pairwise(times)):
        raise UsageError(
            f"imm.times {list(inner)} must fall strictly within ({recipe.t_min}, {recipe.t_max})"
        )
    f = Bridge(model.network, Path(recipe.path), model.noise.sigma_data)

    def sample(noise: Tensor, labels: Tensor | None, _rng: object) -> Tensor:
        x = noise.double() * model.noise.sigma_data
        ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
        for t, s in pairwise(times):
            x = f(x, t * ones, s * ones, labels)
        return x.float()

    return sample


def refuses(nfe: int, recipe: IMMRecipe) -> str | None:
    """Times that the recipe names for this NFE are one fewer than it."""
    inner = recipe.times.get(str(nfe))
    if inner is None or len(inner) == nfe - 1:
        return None
    return f"{nfe} evaluations take {nfe - 1} inner times, the recipe has {len(inner)}"


IMM = Method(
    name="imm",
    label="IMM",
    group=DIRECT,
    reference="Zhou et al., 2025",
    summary="inductive moment matching: samples from one time are matched with those from a little earlier",
    recipe=IMMRecipe,
    sampler=sampler,
    train=train,
    refuses=refuses,
    nfes=(1, 2, 4),
    network=lambda _recipe: {"conditions": 2},
    paper="arXiv:2503.07565",
    differs="the network is told t and s where the paper's is told 1000 t and 1000 s; no guidance",
)
