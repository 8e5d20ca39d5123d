"""Compute the statistics that the protocol of CIFAR-10 compares with, and put them into the package.

    python scripts/ship_reference.py --data DIR    # DIR holds cifar-10-batches-bin

Mean and covariance are of all 50,000 training images; features are kept of 10,000 of them, drawn with a fixed seed, for
precision, recall and KID. After scripts/train_extractor.py has changed the extractor, this has to follow.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from cmbench.data import open_dataset
from cmbench.metrics import protocols, references
from cmbench.metrics.engine import Engine
from cmbench.metrics.extractors import file_hash
from cmbench.metrics.library import build
from cmbench.metrics.protocols import ReferenceSpec
from cmbench.paths import atomic

KEPT = 10_000


def main() -> None:
    """Build, thin out, write, and note the hash."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--protocol", default="cifar10-resnet")
    args = parser.parse_args()
    training = {args.dataset: ReferenceSpec(f"{args.dataset} training set")}
    protocol = dataclasses.replace(protocols.get(args.protocol), references=training)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.npz"
        build(Engine.open(protocol), open_dataset(args.dataset, args.data, download=False), to=whole)
        built, _ = references.read(whole)
    layers = {
        layer: dataclasses.replace(known, features=known.subset(KEPT))
        for layer, known in built.layers.items()
    }
    path = references.SHIPPED / f"{args.protocol}-train.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    provenance = {**built.provenance, "features kept": KEPT}
    references.write(path, references.Reference(path.stem, layers, provenance))
    index = references.SHIPPED / "index.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    with atomic(index) as temporary:
        hashes = {**known, path.name: file_hash(path)}
        temporary.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")
    print(f"wrote {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
