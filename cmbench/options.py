"""What the commands of the command line share: options, and several values after one flag."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class MultiValue(TyperCommand):
    """Lets an option that may be repeated take several values after one flag: ``--nfe 1 2`` is ``--nfe 1 --nfe 2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each further value, then parse as usual."""
        repeatable = {flag for p in self.params if getattr(p, "multiple", False) for flag in p.opts}
        expanded: list[str] = []
        flag: str | None = None  # the repeatable option whose values we are among
        for position, word in enumerate(args):
            if word == "--":
                expanded += args[position:]
                break
            if word.startswith("-"):
                flag = word if word in repeatable else None
            elif flag is not None and args[position - 1] != flag:
                expanded.append(flag)
            expanded.append(word)
        return list(super().parse_args(ctx, expanded))


Dataset = Annotated[str, typer.Option("--dataset", "-d", help="Data set; see `cmbench list datasets`.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder, zip or npz that holds the data set.")]
Methods = Annotated[list[str], typer.Option("--method", "-m", help="Methods, or 'all'; see `cmbench list`.")]
Nfe = Annotated[
    list[int] | None,
    typer.Option("--nfe", min=1, help="Numbers of network evaluations; by default each method's usual ones."),
]
Seeds = Annotated[list[int], typer.Option("--seed", min=0, help="Seeds, of training and of samples.")]
Preset = Annotated[str, typer.Option("--preset", help="Recipe preset: quick, paper, released.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value for any recipe value, as cd.points=10.")
]
Checkpoints = Annotated[
    list[Path] | None, typer.Option("--checkpoint", help="Use this network instead of training it.")
]
Samples = Annotated[int | None, typer.Option("--samples", "-n", min=2, help="Samples to measure on.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Samples at a time.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Results folder.")]
ProtocolName = Annotated[
    str | None, typer.Option("--protocol", help="Evaluation protocol, or a TOML file of one.")
]
Against = Annotated[
    str | None,
    typer.Option("--against", help="Reference: a statistics file, or a name; see `cmbench reference list`."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Weights of the extractor: a file or folder.")
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="Extractor arithmetic: float32, tf32, bf16.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Compute again what is stored.")]
Json = Annotated[bool, typer.Option("--json", help="Print the records as JSON.")]
Format = Annotated[str, typer.Option("--format", "-f", help="rich, md, csv, latex, html or json.")]
