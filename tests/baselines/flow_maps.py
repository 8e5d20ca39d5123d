"""What the tests of the few-step methods share: exact flows, two-time networks, counting, batches."""

from typing import Any

import torch
from mixture import ExactNetwork, Mixture
from torch import Tensor, nn

from cmbench.diffusion.noise import NoiseRange
from cmbench.methods import Method, Model
from cmbench.sampling.generate import EvaluationCounter, Source

NOISE = NoiseRange()


def column(values: Tensor) -> Tensor:
    return values.double().reshape(-1, 1, 1, 1)


def straight_path_map(data: Mixture, noise: Tensor) -> Tensor:
    """Where the flow of the straight path (1 - t) x + t e, t from 1 to 0, takes ``noise``.

    x_t / (1 - t) follows the probability-flow ODE at sigma = t / (1 - t). Close to t = 1 the path is
    ``e - (1 - t) (e - E[x])``, which at a large sigma is sigma e + E[x].
    """
    large = 1e4
    mean = torch.tensor(data.weights, dtype=torch.float64) @ torch.tensor(data.centres, dtype=torch.float64)
    return data.solve(large * noise.double() + mean.reshape(1, 1, 1, 2), large, 1e-3)


def rms(difference: Tensor) -> float:
    """Root of the mean squared length of a sample's difference."""
    return float(difference.double().square().flatten(1).sum(1).mean().sqrt())


class ExactTeacher(ExactNetwork):
    """The mixture's exact denoiser, with the weights of ``start`` for its students to start from."""

    def __init__(self, data: Mixture, start: nn.Module) -> None:
        super().__init__(data)
        self.start = start.state_dict()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.start


class Stub(nn.Module):
    """A smooth raw network of one or two conditions that treats each sample alone."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        level = c_noise if c_noise.ndim == 1 else c_noise @ torch.tensor([1.0, 0.5])
        return torch.tanh(x + level.reshape(-1, 1, 1, 1))


def check_sampler(method: Method, recipe: Any, nfe: int) -> None:
    """The sampler spends ``nfe`` evaluations a sample, and what a sample becomes is its own affair."""
    assert method.refuses(nfe, recipe) is None
    network = Stub()
    counter = EvaluationCounter(network)
    source = Source(method.sampler(Model(network, NOISE), recipe, nfe), (1, 3, 3), 0, 5, torch.device("cpu"))
    together = source.images(range(4))
    assert counter.rows == 4 * nfe
    assert together.dtype == torch.float32 and bool(together.isfinite().all())
    apart = torch.cat([source.images([i]) for i in range(4)])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
