"""Train one of the small classifiers whose features the embedded protocols measure with.

    python scripts/train_extractor.py --dataset digits
    python scripts/train_extractor.py --dataset mnist --data DIR      # DIR holds MNIST/raw
    python scripts/train_extractor.py --dataset cifar10 --data DIR    # DIR holds cifar-10-batches-bin

The network, its held-out accuracy, the settings and a hash of the training data go into
cmbench/assets/extractors/NAME.safetensors, and its hash into index.json beside it, which protocols read.
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmbench.data import open_dataset
from cmbench.data.digits import DIGITS
from cmbench.metrics import classifiers
from cmbench.metrics.classifiers import Architecture, Classifier
from cmbench.paths import atomic


@dataclass(frozen=True)
class Settings:
    """How one classifier is trained."""

    name: str
    architecture: Architecture
    stages: tuple[tuple[int, int], ...]  # (side of the crops that are trained on, epochs), in turn
    batch: int
    learning_rate: float
    shift: int  # largest shift of whole images, in pixels
    flip: bool
    smoothing: float = 0.0
    weight_decay: float = 5e-4
    seed: int = 0
    bf16: bool = False

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(epochs for _, epochs in self.stages)


# Crops of 24 x 24 pixels cost half as much as whole images of CIFAR-10, and teach nearly as well at the start.
SETTINGS = {
    "digits": Settings(
        "digits-cnn", Architecture(1, 8, (32, 64), 1), ((8, 20),), 64, 0.2, shift=1, flip=False
    ),
    "mnist": Settings(
        "mnist-cnn",
        Architecture(1, 28, (16, 32, 64), 1),
        ((28, 4),),
        128,
        0.3,
        shift=2,
        flip=False,
        bf16=True,
    ),
    "cifar10": Settings(
        "cifar10-resnet",
        Architecture(3, 32, (32, 64, 96), 2),
        ((24, 11), (32, 4)),
        128,
        0.2,
        shift=4,
        flip=True,
        smoothing=0.1,
        bf16=True,
    ),
}


@dataclass(frozen=True)
class Split:
    """Training and held-out images, uint8 [N, C, H, W], with labels [N]."""

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the training images and labels."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def _digits() -> Split:
    digits = DIGITS.load(None, False)
    assert digits.labels is not None
    images = torch.from_numpy(digits.read(np.arange(len(digits))))
    labels = torch.from_numpy(digits.labels)
    held = torch.arange(len(images)) >= len(images) * 4 // 5  # the last fifth
    return Split(images[~held], labels[~held], images[held], labels[held])


def _mnist(folder: Path) -> Split:
    def read(name: str, header: int) -> np.ndarray:
        return np.fromfile(folder / "MNIST" / "raw" / name, np.uint8)[header:]

    def part(name: str) -> tuple[Tensor, Tensor]:
        images = read(f"{name}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
        return torch.from_numpy(images), torch.from_numpy(
            read(f"{name}-labels-idx1-ubyte", 8).astype(np.int64)
        )

    return Split(*part("train"), *part("t10k"))


def _cifar10(folder: Path) -> Split:
    """The first 45,000 training images, and the last 5,000 held out."""
    cifar = open_dataset("cifar10", folder, download=False)
    assert cifar.labels is not None
    images, labels = torch.from_numpy(cifar.read(np.arange(len(cifar)))), torch.from_numpy(cifar.labels)
    return Split(images[:45_000], labels[:45_000], images[45_000:], labels[45_000:])


def load(dataset: str, folder: Path | None) -> Split:
    """The data set, split."""
    if dataset == "digits":
        return _digits()
    if folder is None:
        raise SystemExit(f"--dataset {dataset} needs --data DIR")
    return _mnist(folder) if dataset == "mnist" else _cifar10(folder)


def augment(images: Tensor, side: int, shift: int, flip: bool, rng: torch.Generator) -> Tensor:
    """A random crop of ``side`` pixels of each image, and half of them mirrored if ``flip``.

    Whole images are shifted by up to ``shift`` pixels over a black border instead.
    """
    B, _, H, _ = images.shape
    padded = F.pad(images, (shift,) * 4) if side == H else images
    corner = torch.randint(0, padded.shape[-1] - side + 1, (2, B, 1), generator=rng)
    rows, columns = corner[0] + torch.arange(side), corner[1] + torch.arange(side)
    if flip:
        mirrored = torch.rand(B, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(B)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their label's."""
    right = 0
    for start in range(0, len(images), 500):
        _, logits = network(images[start : start + 500])
        right += int((logits.argmax(1) == labels[start : start + 500]).sum())
    return right / len(images)


def train(settings: Settings, data: Split, device: torch.device, steps: int | None = None) -> Classifier:
    """SGD with Nesterov momentum under a one-cycle schedule; ``steps`` stops early, for rehearsals."""
    torch.manual_seed(settings.seed)
    rng = torch.Generator().manual_seed(settings.seed)
    network = Classifier(settings.architecture, folded=False).to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    per_epoch = len(data.images) // settings.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * per_epoch, pct_start=0.25
    )
    started, done = time.monotonic(), 0
    sides = [side for side, epochs in settings.stages for _ in range(epochs)]
    for epoch, side in enumerate(sides):
        network.train()
        order = torch.randperm(len(data.images), generator=rng)
        for index in order[: per_epoch * settings.batch].reshape(per_epoch, -1):
            images = augment(data.images[index], side, settings.shift, settings.flip, rng).to(device)
            labels = data.labels[index].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
                _, logits = network(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
        rate = done * settings.batch / (time.monotonic() - started)
        network.eval()
        held = accuracy(network, data.held_images[:1000].to(device), data.held_labels[:1000].to(device))
        print(
            f"epoch {epoch + 1} of {len(sides)}: loss {loss.item():.3f}, held-out {held:.4f}, {rate:.0f} images/s",
            flush=True,
        )
        if done == steps:
            break
    return classifiers.fold(network.eval().cpu())


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--data", type=Path, help="folder of the raw data set")
    parser.add_argument("--out", type=Path, default=classifiers.ASSETS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--steps", type=int, help="stop after so many steps and write nothing: a rehearsal")
    args = parser.parse_args()
    settings = SETTINGS[args.dataset]
    data = load(args.dataset, args.data)
    network = train(settings, data, args.device, args.steps)
    held = accuracy(network, data.held_images, data.held_labels)
    print(f"{settings.name}: held-out accuracy {held:.4f} on {len(data.held_images)} images")
    if args.steps:
        return
    metadata = {
        "name": settings.name,
        "dataset": args.dataset,
        "held_out_accuracy": held,
        "held_out_images": len(data.held_images),
        "train_images": len(data.images),
        "train_data_sha256": data.fingerprint,
        "settings": asdict(settings),
    }
    path = args.out / f"{settings.name}.safetensors"
    classifiers.save(path, network, metadata)
    index_path = args.out / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    summary = {
        key: metadata[key] for key in ("dataset", "held_out_accuracy", "held_out_images", "train_images")
    }
    index[settings.name] = {"file": path.name, "sha256": digest, **summary}
    with atomic(index_path) as temporary:
        temporary.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    print(f"wrote {path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
