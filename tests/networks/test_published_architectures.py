"""The published architectures: names, shapes, sizes and resampling against what is known of them."""

import numpy as np
import pytest
import scipy.signal
import torch

from cmbench.networks import build, published
from cmbench.networks.layers import GroupNorm32
from cmbench.networks.song import Double, Halve


def on_meta(config, size, classes):
    with torch.device("meta"):
        return build(config, (3, size, size), classes)


def count(config, size, classes):
    return sum(p.numel() for p in on_meta(config, size, classes).parameters())


def conv(inputs, outputs, side=3):
    return inputs * outputs * side**2 + outputs


def linear(inputs, outputs):
    return inputs * outputs + outputs


def attention(c):
    return 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)


def residual(inputs, outputs, embedded, embedding, shortcut):
    convolutions = conv(inputs, outputs) + conv(outputs, outputs) + shortcut * conv(inputs, outputs, 1)
    return 2 * inputs + 2 * outputs + convolutions + linear(embedding, embedded)


def test_cifar10_networks_have_the_published_size():
    """Layer by layer from the papers: every level 256 wide, 4 blocks down and 5 up, attention at 16."""

    def body(image_to_first_features):
        def res(inputs, outputs=256, shortcut=False):
            return residual(inputs, outputs, outputs, 512, shortcut or inputs != outputs)

        encoder = conv(3, 128) + res(128) + 3 * res(256) + 2 * (res(256, shortcut=True) + 4 * res(256))
        middle = 2 * res(256)
        # 15 blocks up take 256 channels and a skip of 256, but for the last, whose skip has 128.
        decoder = 2 * res(256, shortcut=True) + 14 * res(512) + res(384)
        attentions = (4 + 1 + 1) * attention(256)
        output = 2 * 256 + conv(256, 3)
        embedding = linear(image_to_first_features, 512) + linear(512, 512)
        return encoder + middle + decoder + attentions + output + embedding

    ddpmpp = body(128)
    ncsnpp = body(256) + conv(3, 256) + conv(256, 256)  # wider embedding, and the residual input skip
    assert count(published.DDPMPP_CIFAR10, 32, 0) == ddpmpp
    assert count(published.NCSNPP_CIFAR10, 32, 0) == ncsnpp
    conditional = {**published.DDPMPP_CIFAR10, "class_conditional": True}
    assert count(conditional, 32, 10) == ddpmpp + linear(10, 128)
    # EDM publishes 55.7M for DDPM++ on CIFAR-10, and 61.8M for its 64x64 version with multipliers 1, 2, 2, 2.
    assert round(ddpmpp / 1e6, 1) == 55.7
    assert round(count({**published.DDPMPP_CIFAR10, "multipliers": (1, 2, 2, 2)}, 64, 0) / 1e6, 1) == 61.8


def adm_size(widths, blocks, unit, attended, scale_shift, classes):
    """Parameters of an ADM, summed over (inputs, outputs) of its blocks."""
    embedding = 4 * unit

    def res(inputs, outputs):
        return residual(inputs, outputs, (1 + scale_shift) * outputs, embedding, inputs != outputs)

    total = linear(unit, embedding) + linear(embedding, embedding) + classes * embedding
    total += conv(3, widths[0]) + 2 * widths[0] + conv(widths[0], 3)
    total += 2 * res(widths[-1], widths[-1]) + attention(widths[-1])
    skips, current = [widths[0]], widths[0]
    for level, width in enumerate(widths):
        inputs = [current] + [width] * (blocks - 1)
        total += sum(res(i, width) + (level in attended) * attention(width) for i in inputs)
        current = width
        skips += [width] * blocks
        if level < len(widths) - 1:
            total += res(width, width)
            skips += [width]
    for level in reversed(range(len(widths))):
        for _ in range(blocks + 1):
            total += res(current + skips.pop(), widths[level]) + (level in attended) * attention(
                widths[level]
            )
            current = widths[level]
        total += res(current, current) if level else 0
    return total


def test_adm_networks_have_the_published_size():
    imagenet = count(published.ADM_IMAGENET64, 64, 1000)
    lsun = count(published.ADM_LSUN256, 256, 0)
    assert imagenet == adm_size([192, 384, 576, 768], 3, 192, {1, 2, 3}, True, 1000)
    assert lsun == adm_size([256, 256, 512, 512, 1024, 1024], 2, 256, {3, 4, 5}, False, 0)
    assert round(imagenet / 1e6) == 296  # Dhariwal & Nichol, table 4; EDM, table 7
    assert round(lsun / 1e6) == 526


def released_names(encoder, decoder, shrinking, attended, shortcuts, enlarging, labelled):
    """Names in a released ``.pt`` file, from the positions of its layers."""

    def both(*stems):
        return {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")}

    def res(stem, shortcut=False):
        parts = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
        return both(*(f"{stem}.{part}" for part in parts + ["skip_connection"] * shortcut))

    def attend(stem):
        return both(f"{stem}.norm", f"{stem}.qkv", f"{stem}.proj_out")

    names = both("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    names |= res("middle_block.0") | attend("middle_block.1") | res("middle_block.2")
    names |= {"label_emb.weight"} if labelled else set()
    for i in range(1, encoder):
        names |= res(f"input_blocks.{i}.0", i in shortcuts)
        assert not (i in attended[0] and i in shrinking)
        names |= attend(f"input_blocks.{i}.1") if i in attended[0] else set()
    for i in range(decoder):
        names |= res(f"output_blocks.{i}.0", True)
        names |= attend(f"output_blocks.{i}.1") if i in attended[1] else set()
        names |= res(f"output_blocks.{i}.{1 + (i in attended[1])}") if i in enlarging else set()
    return names


def test_adm_parameters_have_the_names_and_shapes_of_the_released_files():
    """The positions follow from diffusers' published conversion of these files: with n blocks a level, down
    block l takes ``input_blocks`` 1 + l(n + 1) to n + l(n + 1), then one as downsampler; every up block takes
    n + 1 ``output_blocks``, the last ending with the upsampler (``.2`` after attention, else ``.1``).
    """
    imagenet = on_meta(published.ADM_IMAGENET64, 64, 1000).state_dict()
    assert set(imagenet) == released_names(
        encoder=16,
        decoder=16,
        shrinking={4, 8, 12},
        attended=({5, 6, 7, 9, 10, 11, 13, 14, 15}, set(range(12))),
        shortcuts={5, 9, 13},
        enlarging={3, 7, 11},
        labelled=True,
    )
    lsun = on_meta(published.ADM_LSUN256, 256, 0).state_dict()
    assert set(lsun) == released_names(
        encoder=18,
        decoder=18,
        shrinking={3, 6, 9, 12, 15},
        attended=({10, 11, 13, 14, 16, 17}, set(range(9))),
        shortcuts={7, 13},
        enlarging={2, 5, 8, 11, 14},
        labelled=False,
    )
    assert len(imagenet) == 541 and len(lsun) == 566
    shapes = {
        "time_embed.0.weight": (768, 192),
        "label_emb.weight": (1000, 768),
        "input_blocks.0.0.weight": (192, 3, 3, 3),
        "input_blocks.5.0.skip_connection.weight": (384, 192, 1, 1),
        "input_blocks.5.0.emb_layers.1.weight": (768, 768),
        "input_blocks.5.1.qkv.weight": (1152, 384, 1, 1),
        "output_blocks.0.0.in_layers.2.weight": (768, 1536, 3, 3),
        "output_blocks.15.0.in_layers.0.weight": (384,),
        "out.2.weight": (3, 192, 3, 3),
    }
    assert {name: tuple(imagenet[name].shape) for name in shapes} == shapes
    assert tuple(lsun["input_blocks.13.0.emb_layers.1.weight"].shape) == (1024, 1024)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_is_a_convolution_with_the_filter(taps):
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    margin = (len(taps) - 1) // 2
    halved, doubled = Halve(taps)(x), Double(taps)(x)
    assert halved.shape == (2, 3, 4, 3) and doubled.shape == (2, 3, 16, 12)
    for image, half, double in zip(x.flatten(0, 1), halved.flatten(0, 1), doubled.flatten(0, 1), strict=True):
        smooth = scipy.signal.convolve2d(np.pad(image, margin), kernel, mode="valid")
        np.testing.assert_allclose(half, smooth[::2, ::2], atol=1e-6)
        spread = np.zeros((16, 12))
        spread[::2, ::2] = image
        smooth = scipy.signal.convolve2d(spread, 4 * kernel, mode="full")
        np.testing.assert_allclose(double, smooth[margin : margin + 16, margin : margin + 12], atol=1e-6)


def test_resampling_keeps_a_constant():
    """Everywhere with (1, 1); within the border with (1, 3, 3, 1), which mixes in the zeros beyond it."""
    x = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(Halve((1, 1))(Double((1, 1))(x)), x)
    fir = Halve((1, 3, 3, 1))(Double((1, 3, 3, 1))(x))
    torch.testing.assert_close(fir[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])
    assert (fir[..., 0, :] < 0.7).all()


def test_norms_are_computed_in_float32():
    """Rounded once, at the end: seen on a small signal with a large offset."""
    norm = GroupNorm32(2, 64)
    x = (1000 + torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))).half()
    exact = torch.nn.functional.group_norm(x.float(), 2, norm.weight, norm.bias)
    assert torch.equal(norm(x), exact.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x), exact.half())


@pytest.mark.parametrize(("config", "eps"), [(published.NCSNPP_CIFAR10, 1e-6), (published.ADM_LSUN256, 1e-5)])
def test_norms_have_the_epsilon_and_groups_of_the_source(config, eps):
    norms = [m for m in on_meta(config, 32, 0).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {(norm.eps, norm.num_groups) for norm in norms} == {(eps, 32)}
