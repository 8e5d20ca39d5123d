"""What is given: the operators are orthogonal, put the given part back exactly, and stay in range at the end."""

import pytest
import torch

from cmbench.diffusion import operators
from cmbench.diffusion.operators import Operator

SHAPE = (5, 3, 12, 12)
HOLE = torch.zeros(12, 12, dtype=torch.bool)
HOLE[3:8, 2:9] = True
ALL: dict[str, Operator] = {
    "inpainting": operators.inpainting(HOLE),
    "nothing given": operators.everything_missing(),
    "colorization": operators.colorization(),
    **{f"superresolution {p}": operators.superresolution(p) for p in (2, 3, 4)},
}


@pytest.fixture(params=ALL)
def given(request: pytest.FixtureRequest) -> Operator:
    return ALL[request.param]


def images(seed: int, spread: float = 1.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return spread * (2 * torch.rand(SHAPE, generator=rng, dtype=torch.float64) - 1)


def test_an_operator_is_orthogonal_and_its_inverse_undoes_it(given: Operator) -> None:
    x, y = images(0), images(1)
    torch.testing.assert_close(given.inverse(given.forward(x)), x, rtol=0, atol=1e-14)
    products = (given.forward(x) * given.forward(y)).sum(), (x * y).sum()
    torch.testing.assert_close(*products, rtol=1e-13, atol=0)


def test_imposing_gives_the_given_part_and_keeps_the_rest(given: Operator) -> None:
    x, y = images(0), images(1)
    made = given.impose(given.forward(y), x)
    assert (
        given.error(given.forward(y), made).numel() == 0 or given.error(given.forward(y), made).max() < 1e-14
    )
    torch.testing.assert_close(given.impose(given.forward(x), made), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(given.impose(given.forward(x), x), x, rtol=0, atol=1e-14)


def test_what_is_given_is_the_luma_or_the_mean_of_a_block() -> None:
    x = images(0)
    luma = (x * torch.tensor(operators.LUMA, dtype=torch.float64)[:, None, None]).sum(1)
    size = torch.tensor(operators.LUMA, dtype=torch.float64).norm()
    torch.testing.assert_close(operators.colorization().forward(x)[..., 0], luma / size)
    first = operators.superresolution(3).forward(x)[..., 0]
    torch.testing.assert_close(first, 3 * torch.nn.functional.avg_pool2d(x, 3))
    flat = operators.superresolution(3).impose(operators.superresolution(3).forward(x), torch.zeros_like(x))
    torch.testing.assert_close(
        flat, torch.nn.functional.avg_pool2d(x, 3).repeat_interleave(3, 2).repeat_interleave(3, 3)
    )


@pytest.mark.parametrize("extreme", (False, True))
def test_the_end_is_the_nearest_image_in_range_with_the_given_part(given: Operator, extreme: bool) -> None:
    # Real images have blocks of pure black and white, whose only continuation is themselves.
    y = images(1).sign() if extreme else images(1)
    y[:2] = -1
    known, x = given.forward(y), images(0, spread=2.0)
    made = given.finish(known, x)
    assert made.abs().max() <= 1
    error = given.error(known, made)
    assert error.numel() == 0 or error.max() < 1e-12
    if isinstance(given, operators.Groups):
        torch.testing.assert_close(made[:2], y[:2], rtol=0, atol=1e-12)
    # The nearest point of a convex set: no other of its points lies on the side of x (here: points between y and made).
    other = given.finish(known, images(3, spread=2.0))
    assert ((x - made) * (other - made)).sum() <= 1e-9


def test_given_pixels_are_copied_bit_for_bit() -> None:
    x, y = images(0), images(1)
    made = ALL["inpainting"].finish(y, x)
    assert torch.equal(made[:, :, ~HOLE], y[:, :, ~HOLE])
    assert torch.equal(made[:, :, HOLE], x[:, :, HOLE])
