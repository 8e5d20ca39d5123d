"""Algorithm 4 and the diffusion baselines, where the networks are exact: Gaussian data."""

from itertools import pairwise

import pytest
import torch
from gaussian import ExactConsistency, ExactDenoiser, Gaussian
from torch import Tensor

from cmbench.consistency import editing
from cmbench.consistency.editing import editing_levels
from cmbench.consistency.function import ConsistencyFunction, ConsistencyModel
from cmbench.diffusion import editing as diffusion
from cmbench.diffusion import operators
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.noise import NoiseRange
from cmbench.diffusion.preconditioning import Denoiser
from cmbench.editing import tasks
from cmbench.errors import UsageError
from cmbench.sampling.generate import EvaluationCounter
from cmbench.sampling.seeds import SampleRng

NOISE = NoiseRange()
DATA = Gaussian(mean=0.1, std=0.2)  # hardly ever outside [-1, 1]
N = 2000
HOLE = torch.tensor([[True, True], [False, False]])
CPU = torch.device("cpu")


def rng(count: int = N, seed: int = 0) -> SampleRng:
    return SampleRng(seed, range(count), CPU)


def real(count: int = N, shape: tuple[int, ...] = (1, 2, 2)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return DATA.mean + DATA.std * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def model() -> ConsistencyModel:
    return ConsistencyModel(ConsistencyFunction(ExactConsistency(DATA, NOISE), NOISE), NOISE, points=10)


# --- the exact posterior --------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", (1, 2, 9, 20))
def test_independent_pixels_are_inpainted_from_their_own_distribution(
    model: ConsistencyModel, nfe: int
) -> None:
    y = real()
    made = editing.edit(model, operators.inpainting(HOLE), y, editing_levels(model, nfe), rng())
    assert torch.equal(made[..., ~HOLE], y[..., ~HOLE])
    missing, known = made[..., HOLE], y[..., ~HOLE]
    assert missing.mean() == pytest.approx(DATA.mean, abs=4 * DATA.std / (2 * N) ** 0.5)
    assert missing.std() == pytest.approx(DATA.std, rel=4 / (4 * N) ** 0.5)
    together = torch.corrcoef(torch.cat([missing, known], -1).flatten(1).T)
    assert together.fill_diagonal_(0).abs().max() < 4 / N**0.5  # nothing to be learnt from the given pixels


def test_detail_of_white_noise_does_not_depend_on_the_block_means(model: ConsistencyModel) -> None:
    y, given = real(), operators.superresolution(2)
    made = editing.edit(model, given, y, editing_levels(model, 5), rng())
    before, after = given.forward(y)[..., 0], given.forward(made)
    torch.testing.assert_close(after[..., 0], before, rtol=0, atol=1e-12)
    detail = after[..., 1:].flatten(1)
    assert detail.mean(0).abs().max() < 4 * DATA.std / N**0.5
    assert detail.std() == pytest.approx(DATA.std, rel=4 / (6 * N) ** 0.5)


def test_correlated_pixels_follow_the_recursion_of_the_algorithm() -> None:
    """f is linear here: mean and variance of the missing pixel are known after each level, by a recursion of two lines.

    With more levels the mean comes closer to that of the true posterior.
    """
    mean, std, share = torch.tensor([0.1, -0.1], dtype=torch.float64), 0.15, 0.8
    covariance = std**2 * torch.tensor([[1, share], [share, 1]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)

    def matrix(sigma: float) -> Tensor:
        scale = torch.sqrt((values + NOISE.sigma_min**2) / (values + sigma**2))
        return vectors @ torch.diag(scale) @ vectors.T

    def f(x: Tensor, sigma: Tensor, _labels: Tensor | None) -> Tensor:
        return ((x.flatten(1) - mean) @ matrix(float(sigma[0]))).add(mean).reshape(x.shape)

    model = ConsistencyModel(f, NOISE)
    hole = torch.tensor([[False, True]])
    y = torch.full((N, 1, 1, 2), 0.3, dtype=torch.float64)
    posterior = float(mean[1] + share * (0.3 - mean[0]))
    errors = []
    for nfe in (1, 4, 60):
        sigmas = editing_levels(model, nfe)
        made = editing.edit(model, operators.inpainting(hole), y, sigmas, rng())[:, 0, 0, 1]
        expected, variance = 0.0, 0.0
        for place, sigma in enumerate(sigmas):
            m = matrix(sigma)
            spread = sigma**2 - (NOISE.sigma_min**2 if place else 0)
            expected = float(mean[1] + m[1, 0] * (0.3 - mean[0]) + m[1, 1] * (expected - mean[1]))
            variance = float(m[1, 0] ** 2 * spread + m[1, 1] ** 2 * (variance + spread))
        assert made.mean() == pytest.approx(expected, abs=4 * (variance / N) ** 0.5)
        assert made.var() == pytest.approx(variance, rel=4 * (2 / N) ** 0.5)
        errors.append(abs(expected - posterior))
    assert errors[0] > errors[1] > 3 * errors[2]


def test_strokes_and_noisy_images_start_at_their_level(model: ConsistencyModel) -> None:
    painting = real()
    made = editing.edit(model, operators.everything_missing(), painting, (0.02,), rng(), start=painting)
    assert (made - painting).std() == pytest.approx(0.02, rel=0.05)  # so little noise leaves the painting
    noisy = painting + 0.1 * torch.from_numpy(tasks.noise_for(7, range(N), (1, 2, 2)).numpy())
    exact = DATA.flow(noisy, torch.full((N,), 0.1), torch.full((N,), NOISE.sigma_min)).clamp(-1, 1)
    torch.testing.assert_close(editing.denoise(model, noisy, (0.1,), rng()), exact, rtol=0, atol=1e-6)


# --- randomness -----------------------------------------------------------------------------------


def test_a_result_depends_on_its_seed_and_index_alone(model: ConsistencyModel) -> None:
    problem = tasks.inpainting(real(7), HOLE)
    sigmas = editing_levels(model, 4)

    def made(seed: int, size: int) -> Tensor:
        return tasks.in_batches(
            lambda p, r, labels: tasks.solve(model, p, sigmas, r, labels),
            problem,
            seed,
            range(7),
            None,
            size,
            CPU,
        )

    whole = made(0, 7)
    assert torch.equal(made(0, 2), whole) and torch.equal(made(0, 3), whole)
    assert not torch.equal(made(1, 7)[..., HOLE], whole[..., HOLE])


# --- levels ---------------------------------------------------------------------------------------


def test_levels_are_those_of_the_training_grid_as_far_as_it_goes(model: ConsistencyModel) -> None:
    grid = karras_sigmas(NOISE, 10).tolist()
    assert editing_levels(model, 9) == tuple(grid[:-1])
    for nfe in (1, 2, 5):
        chosen = editing_levels(model, nfe)
        assert len(chosen) == nfe and chosen[0] == NOISE.sigma_max and set(chosen) <= set(grid)
        assert list(chosen) == sorted(chosen, reverse=True)
    assert editing_levels(model, 12) == tuple(karras_sigmas(NOISE, 13).tolist()[:-1])
    inner = editing_levels(model, 3, 1.0)
    assert inner[0] == 1.0 and len(inner) == 3 and set(inner[1:]) <= set(grid)
    for wrong in (81.0, 0.002, 0.0):
        with pytest.raises(UsageError, match=r"noise levels from 0\.002 to 80"):
            editing_levels(model, 3, wrong)


def test_every_consistency_method_takes_part_and_no_other() -> None:
    names = tasks.able()
    assert {"cd", "ct", "ict", "ect", "sct", "scd", "ctm"} <= set(names)
    assert not {"edm", "pd", "ddim", "rf1"} & set(names)


# --- diffusion ------------------------------------------------------------------------------------


def expected_std(passes: int, points: int) -> float:
    """Of independent Gaussian pixels after the ancestral sampler, whose every step is linear in x.

    It falls short of the data's: a step's noise leaves out what the denoiser does not know of the clean image.
    """
    levels = karras_sigmas(NOISE, points).tolist()
    variance = levels[0] ** 2
    for sigma, lower in pairwise(levels):
        ratio, gain = (lower / sigma) ** 2, DATA.std**2 / (DATA.std**2 + sigma**2)
        for number in range(passes):
            variance = (ratio + (1 - ratio) * gain) ** 2 * variance + lower**2 * (1 - ratio)
            variance += sigma**2 - lower**2 if number + 1 < passes else 0
    gain = DATA.std**2 / (DATA.std**2 + levels[-1] ** 2)
    return float(gain * variance**0.5)


@pytest.mark.parametrize(
    ("arm", "nfe", "std"),
    [
        ("ddim", 65, DATA.std),
        ("edm", 65, DATA.std),
        ("ancestral", 33, expected_std(1, 33)),
        ("repaint", 65, expected_std(4, 17)),
    ],
)
def test_diffusion_inpaints_independent_pixels_too_and_counts(arm: str, nfe: int, std: float) -> None:
    network = ExactDenoiser(DATA)
    counter = EvaluationCounter(network)
    one = next(each for each in tasks.ARMS if each.name == arm)
    y = real()
    made = one.solve(Denoiser(network, NOISE.sigma_data), NOISE, tasks.inpainting(y, HOLE), nfe, rng(), None)
    assert counter.rows == N * nfe
    assert torch.equal(made[..., ~HOLE], y[..., ~HOLE])
    missing = made[..., HOLE]
    assert missing.mean() == pytest.approx(DATA.mean, abs=4 * DATA.std / (2 * N) ** 0.5)
    # The ODE's own error at these steps is 3 % and below; the ancestral sampler's is in what is expected of it.
    assert missing.std() == pytest.approx(std, rel=4 / (4 * N) ** 0.5 + (0.03 if std == DATA.std else 0))


def test_arms_say_what_they_can_do() -> None:
    can = {arm.name: [nfe for nfe in (1, 2, 3, 5, 8, 9) if arm.can("inpaint", nfe)] for arm in tasks.ARMS}
    assert can == {
        "ddim": [1, 2, 3, 5, 8, 9],
        "edm": [1, 3, 5, 9],
        "ancestral": [1, 2, 3, 5, 8, 9],
        "repaint": [5, 9],
    }
    assert [arm.name for arm in tasks.ARMS if arm.can("stroke", 5)] == ["ddim", "edm", "ancestral"]
    assert [arm.name for arm in tasks.ARMS if arm.can("denoise", 5)] == ["ddim", "edm"]


def test_images_go_to_noise_space_and_back(model: ConsistencyModel) -> None:
    x = real(50)
    denoise = Denoiser(ExactDenoiser(DATA), NOISE.sigma_data)
    latents = diffusion.encode(denoise, x, karras_sigmas(NOISE, 240).flip(0))
    low, high = torch.full((50,), NOISE.sigma_min), torch.full((50,), NOISE.sigma_max)
    torch.testing.assert_close(latents, DATA.flow(x, low, high) / NOISE.sigma_max, rtol=0, atol=5e-3)
    torch.testing.assert_close(editing.from_latents(model, latents), x, rtol=0, atol=2e-3)


def test_spherical_interpolation_keeps_the_ends_and_the_length() -> None:
    a, b = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = b / b.norm() * a.norm()
    path = editing.slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    torch.testing.assert_close(path.flatten(1).norm(dim=1), a.norm().expand(5))
    cosines = torch.nn.functional.cosine_similarity(path[1:].flatten(1), path[:-1].flatten(1))
    torch.testing.assert_close(cosines, cosines[:1].expand(4))
    torch.testing.assert_close(editing.slerp(a, 2 * a, torch.tensor([0.5]))[0], 1.5 * a)
