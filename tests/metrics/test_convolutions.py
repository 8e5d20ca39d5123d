"""Fast forms of convolutions against the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d

from cmbench.metrics.convolutions import Convolution, LineConvolution, MeanPoolConvolution, line_transforms


def layer(channels: int, out: int, kernel: tuple[int, int]) -> BasicConv2d:
    """A convolution and a normalisation whose statistics are those of nothing in particular."""
    torch.manual_seed(1)
    padding = (kernel[0] // 2, kernel[1] // 2)
    made = BasicConv2d(channels, out, kernel_size=kernel, padding=padding)
    nn.init.kaiming_normal_(made.conv.weight, nonlinearity="relu")
    for values, low, high in (
        (made.bn.weight, 0.5, 1.5),
        (made.bn.bias, -1.0, 1.0),
        (made.bn.running_mean, -1.0, 1.0),
        (made.bn.running_var, 0.5, 2.0),
    ):
        nn.init.uniform_(values, low, high)
    return made.eval().requires_grad_(False)


def maps(count: int, channels: int, size: int) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(count, channels, size, size).relu().contiguous(memory_format=torch.channels_last)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("length", "taps"), [(17, 7), (8, 3), (9, 5), (20, 7), (1, 3)])
def test_line_transforms_correlate(length: int, taps: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(length).double(), torch.randn(taps).double()
    enter, middle, leave = line_transforms(length, taps)
    expected = F.conv1d(x[None, None], w[None, None], padding=taps // 2)[0, 0]
    torch.testing.assert_close(leave @ ((enter @ x) * (middle @ w)), expected, rtol=1e-12, atol=1e-12)
    if (length, taps) == (17, 7):
        assert len(enter) == 29  # products, where the plain sum takes 17 * 7


@pytest.mark.parametrize("kernel", [(1, 7), (7, 1)])
def test_line_convolutions_are_as_exact_as_plain_ones(kernel: tuple[int, int]) -> None:
    plain, x = layer(48, 40, kernel), maps(3, 48, 17)
    exact = layer(48, 40, kernel).double()(x.double())
    found = LineConvolution(plain, 17)(x)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 1.5 * error(plain(x), exact) < 1e-6


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7)])
def test_merged_normalisations_change_rounding_only(kernel: tuple[int, int]) -> None:
    plain, x = layer(16, 24, kernel), maps(2, 16, 17)
    exact = layer(16, 24, kernel).double()(x.double())
    assert error(Convolution(plain)(x), exact) < 1e-6
    before = F.relu(Convolution(plain, relu=False)(x))
    torch.testing.assert_close(before, Convolution(plain)(x), rtol=0, atol=0)


def test_the_mean_of_neighbours_commutes_with_a_point_convolution() -> None:
    plain, x = layer(32, 12, (1, 1)), maps(2, 32, 9)
    pooled = F.avg_pool2d(x.double(), 3, stride=1, padding=1, count_include_pad=False)
    assert error(MeanPoolConvolution(plain)(x), layer(32, 12, (1, 1)).double()(pooled)) < 1e-6
