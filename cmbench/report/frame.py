"""Records as a pandas table: one row a record, for whoever wants to ask questions of their own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cmbench.records import Record

if TYPE_CHECKING:
    import pandas as pd

FIXED = ("dataset", "group", "method", "label", "nfe", "nfe_counted", "seed", "samples", "protocol")


def frame(records: Sequence[Record]) -> "pd.DataFrame":
    """All records, sorted by data set, group, method, NFE and seed.

    Columns: those of :data:`FIXED`; for each metric its value (NaN where it was not computed) and, where any record
    has one, ``<metric>_std``; ``training_seconds``, ``images_per_second``; ``fingerprint``, ``checkpoint``, ``key``.
    """
    import pandas as pd

    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    rows = []
    for record in records:
        row = {name: getattr(record, name) for name in FIXED}
        for name in metrics:
            metric = record.metrics.get(name)
            row[name] = metric.value if metric else None
            row[f"{name}_std"] = metric.std if metric else None
        row |= {name: record.cost.get(name) for name in ("training_seconds", "images_per_second")}
        row |= {
            "fingerprint": record.protocol_fingerprint,
            "checkpoint": record.checkpoint,
            "key": record.key,
        }
        rows.append(row)
    costs = ["training_seconds", "images_per_second"]
    numeric = [name for metric in metrics for name in (metric, f"{metric}_std")]
    columns = [*FIXED, *numeric, *costs, "fingerprint", "checkpoint", "key"]
    made = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys([*numeric, *costs], float))
    empty = [name for name in numeric if name.endswith("_std") and made[name].isna().all()]
    order = ["dataset", "group", "method", "nfe", "seed"]
    return made.drop(columns=empty).sort_values(order, ignore_index=True)
