"""Batches as a function of (seed, step)."""

from collections import Counter

import numpy as np
import pytest
import torch

from cmbench.data.base import ArraySource, ImageData
from cmbench.training.batches import Batches

CPU = torch.device("cpu")


def data(count: int, labels: bool = True) -> ImageData:
    pixels = np.arange(count * 6, dtype=np.int64).reshape(count, 1, 2, 3).astype(np.uint8)
    return ImageData(
        "toy", "Toy", ArraySource(pixels), np.arange(count, dtype=np.int64) if labels else None, count
    )


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (10, 10), (7, 3), (5, 13), (4, 1)])
def test_every_epoch_visits_every_image_once(count: int, batch: int):
    batches = Batches(data(count), CPU, batch, 3, False)
    stream = np.concatenate([batches.indices(step) for step in range(3 * count)])
    assert len(stream) == 3 * count * batch
    for epoch in range(3):
        part = stream[epoch * count : (epoch + 1) * count]
        assert Counter(part.tolist()) == Counter(range(count))


def test_batches_are_a_function_of_seed_and_step_whatever_was_asked_before():
    forwards = Batches(data(10), CPU, 4, 3, False)
    wanted = [forwards.indices(step).tolist() for step in range(20)]
    backwards = Batches(data(10), CPU, 4, 3, False)
    assert [backwards.indices(step).tolist() for step in reversed(range(20))] == wanted[::-1]
    assert [Batches(data(10), CPU, 4, 4, False).indices(step).tolist() for step in range(20)] != wanted


def test_epochs_have_orders_of_their_own():
    batches = Batches(data(30), CPU, 30, 0, False)
    assert batches.indices(0).tolist() != batches.indices(1).tolist()


def test_images_and_labels_belong_together_and_fill_the_range():
    images = data(10)
    batches = Batches(images, CPU, 6, 0, False)
    x, labels = batches.at(1, torch.Generator())
    assert x.dtype == torch.float32
    assert labels.tolist() == batches.indices(1).tolist()
    wanted = images.read(batches.indices(1)).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(x.numpy(), wanted, atol=1e-6)
    ends = ImageData("ends", "", ArraySource(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)))
    x, labels = Batches(ends, CPU, 2, 0, False).at(0, torch.Generator())
    assert sorted(x.flatten().tolist()) == [-1.0, 1.0]
    assert labels is None


def test_flips_are_horizontal_by_image_and_drawn_from_the_generator():
    images = data(40)
    plain, flipping = (Batches(images, CPU, 40, 0, flip) for flip in (False, True))
    x, _ = plain.at(0, torch.Generator())
    flipped, labels = flipping.at(0, torch.Generator().manual_seed(1))
    again, _ = flipping.at(0, torch.Generator().manual_seed(1))
    assert torch.equal(flipped, again)
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, x, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 8 <= sum(turned) <= 32
    assert labels.tolist() == plain.indices(0).tolist()


def test_large_sets_are_read_batch_by_batch_with_the_same_result():
    class Huge(ImageData):
        reads: list = []  # noqa: RUF012

        def read(self, indices):
            self.reads.append(len(indices))
            assert len(indices) <= 8, "read at once"
            return super().read(np.asarray(indices) % 40)

        def __len__(self):
            return 2**31 // 6 + 1

    small = data(40)
    huge = Huge("huge", "", small.source)
    batches = Batches(huge, CPU, 8, 0, False)
    batches._epoch = (0, np.random.default_rng((0, 0)).permutation(40))  # the order of the small set
    x, _ = batches.at(2, torch.Generator())
    assert torch.equal(x, Batches(small, CPU, 8, 0, False).at(2, torch.Generator())[0])
