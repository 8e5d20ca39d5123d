"""Convolutions with their batch normalisation merged, and long thin ones by a discrete Fourier transform."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as blocks


class Convolution(nn.Module):
    """A convolution that carries its batch normalisation, followed by ReLU unless ``relu`` is false."""

    def __init__(self, layer: blocks.BasicConv2d, relu: bool = True) -> None:
        super().__init__()
        weight, bias = merged(layer)
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.bias = nn.Parameter(bias.float(), requires_grad=False)
        self.stride, self.padding, self.relu = layer.conv.stride, layer.conv.padding, relu

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in channels_last to [B, O, H', W']."""
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return F.relu_(x) if self.relu else x


class LineConvolution(Convolution):
    """A convolution along one axis that keeps the size of the map; on the CPU with a quarter of the products.

    On the CPU a 1 x 7 convolution of a 17 x 17 map is bound by its multiplications: 17 * 7 of them for each row
    and each pair of channels. In the space of the discrete Fourier transform of length 20 it takes 29 (three for
    each complex frequency), one matrix product for each. The transforms are small matrix products too, and
    orthogonal, so that float32 results are as exact as those of the sum itself.
    """

    lines: Tensor
    enter: Tensor
    leave: Tensor

    def __init__(self, layer: blocks.BasicConv2d, length: int) -> None:
        super().__init__(layer)
        weight, _ = merged(layer)
        self.vertical = weight.shape[2] > 1
        enter, taps, leave = line_transforms(length, max(weight.shape[2:]))
        self.register_buffer(
            "lines", torch.einsum("kt,oct->kco", taps, weight.flatten(2)).float().contiguous()
        )
        self.register_buffer("enter", enter.float())
        self.register_buffer("leave", leave.float())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in channels_last to [B, O, H, W]."""
        if not x.is_cpu:
            return super().forward(x)
        B, C, H, W = x.shape
        K, _, O = self.lines.shape  # noqa: E741
        x = x.permute(0, 2, 3, 1)  # without a copy, as the map is in channels_last
        if self.vertical:
            x = (self.enter @ x.reshape(B, H, W * C)).view(B, K, W, C).transpose(0, 1).reshape(K, B * W, C)
            y = self.leave @ torch.bmm(x, self.lines).view(K, B, W * O).transpose(0, 1)
        else:
            x = (self.enter @ x.reshape(B * H, W, C)).transpose(0, 1)
            y = self.leave @ torch.bmm(x, self.lines).transpose(0, 1)
        return y.view(B, H, W, O).add_(self.bias).relu_().permute(0, 3, 1, 2)


class MeanPoolConvolution(Convolution):
    """A mean over 3 x 3 neighbours, then a 1 x 1 convolution, computed the other way round: fewer channels."""

    def __init__(self, layer: blocks.BasicConv2d) -> None:
        super().__init__(layer, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in channels_last to [B, O, H, W]."""
        return F.relu_(F.avg_pool2d(super().forward(x), 3, stride=1, padding=1, count_include_pad=False))


def merged(layer: blocks.BasicConv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of a convolution and the batch normalisation behind it."""
    convolution, norm = layer.conv, layer.bn
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = convolution.weight.detach().double() * scale[:, None, None, None]
    return weight, norm.bias.detach().double() - norm.running_mean.double() * scale


@cache
def line_transforms(length: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real matrices E [K, length], T [K, taps], L [length, K]: ``L ((E x) * (T w))`` correlates x with w.

    As ``conv1d`` with ``taps // 2`` zeros on both sides does it. Float64, from the discrete Fourier transform of
    length ``length + taps // 2``, in which the sum does not wrap around; the product of two complex numbers
    takes three real ones (Gauss).
    """
    period = length + taps // 2
    place = torch.arange(length, dtype=torch.float64)
    shift = torch.arange(taps, dtype=torch.float64) - taps // 2
    enter, middle, leave = [], [], []
    for k in range(period // 2 + 1):
        angle = 2 * math.pi * k / period
        a, b = torch.cos(angle * place), -torch.sin(angle * place)  # of the line
        c, d = torch.cos(angle * shift), torch.sin(angle * shift)  # of the taps, conjugate
        if k == 0 or 2 * k == period:  # both are real
            enter += [a]
            middle += [c]
            leave += [a / period]
        else:  # (a + ib)(c + id) from c(a + b), a(d - c), b(c + d); the conjugate frequency counts double
            enter += [a + b, a, b]
            middle += [c, d - c, c + d]
            leave += [2 * (a + b) / period, 2 * b / period, -2 * a / period]
    return torch.stack(enter), torch.stack(middle), torch.stack(leave, 1)
