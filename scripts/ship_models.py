"""Train networks with the shipped recipes and put them into the package, where every command finds them.

    python scripts/ship_models.py                                   # the EDM teacher of the digits
    python scripts/ship_models.py --dataset cifar10 --data DIR --bf16 --method edm cd ct pd ect --nfe 1 2 4 --out DIR

They go into cmbench/assets/checkpoints and are found as long as recipe, network and data are those they were
trained with; older ones of the same method and stage are removed. What has been shipped leaves OUT, so that students
learn from the network that ships. A killed run continues from OUT.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from cmbench import checkpoints, console, methods
from cmbench.session import Options, open_workshop
from cmbench.workshop import SHIPPED, Need, Workshop


def ship(workshop: Workshop, need: Need, bf16: bool) -> Path:
    """Train what is needed, copy it into the package and take it out of the results folder."""
    path = workshop.path(need)
    if not path.exists():
        workshop.ensure(need, force=not path.with_suffix(".state").exists())
    shipped = SHIPPED / path.name
    SHIPPED.mkdir(parents=True, exist_ok=True)
    for old in SHIPPED.glob(path.name.replace(need.key, "*")):
        old.unlink()
    if bf16:
        checkpoints.save_rounded(checkpoints.load(path), shipped)
    else:
        shutil.copy(path, shipped)
    path.unlink()
    return shipped


def in_order(wanted: list[Need]) -> list[Need]:
    """Teachers before their students, each once."""

    def ancestors(need: Need) -> int:
        return max((1 + ancestors(above) for above in need.above), default=0)

    return sorted({need.key: need for need in wanted}.values(), key=ancestors)


def main() -> None:
    """Ship the networks that these methods sample with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", nargs="+", default=["edm"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[1])
    parser.add_argument("--bf16", action="store_true", help="round the weights: half the size")
    parser.add_argument("--new", action="store_true", help="train again what ships already")
    parser.add_argument("--out", type=Path, help="results folder to work in")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    with console.bars() as progress:
        workshop = open_workshop(
            Options(args.dataset, args.data, out=out, begin=progress.training, download=False)
        )
        wanted = [
            workshop.need(method, nfe, seed=0)
            for method in map(methods.get, args.method)
            for nfe in args.nfe
            if method.refuses(nfe, workshop.recipe(method)) is None
        ]
        for need in in_order(wanted):
            if args.new or not (SHIPPED / workshop.path(need).name).exists():
                shipped = ship(workshop, need, args.bf16)
                print(f"{shipped} ({shipped.stat().st_size:,} bytes)", flush=True)


if __name__ == "__main__":
    main()
