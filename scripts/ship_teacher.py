"""Train the EDM teacher of the embedded data set and ship it with the package.

    python scripts/ship_teacher.py

The file goes into cmbench/assets/checkpoints, where `cmbench run` finds it as long as the recipe, the network and the
data are those it was trained with; older ones are removed.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from cmbench import console, methods
from cmbench.session import Options, open_workshop
from cmbench.workshop import SHIPPED


def main() -> None:
    """Train from nothing, whatever is shipped now, and copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="results folder to work in, which a killed run continues from"
    )
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    with console.bars() as progress:
        workshop = open_workshop(Options(out=out, begin=progress.training))
        need = workshop.need(methods.get("edm"), 1, 0)
        path = workshop.path(need)
        if not path.exists():
            path = workshop.ensure(need, force=not path.with_suffix(".state").exists()).path
    SHIPPED.mkdir(parents=True, exist_ok=True)
    for old in SHIPPED.glob(f"{workshop.images.name}-edm-*.safetensors"):
        old.unlink()
    print(shutil.copy(path, SHIPPED / path.name))


if __name__ == "__main__":
    main()
