"""Made-up records for the tests of the report."""

from collections.abc import Mapping
from typing import Any

from cmbench.records import Metric, Record

GROUPS = {
    "cd": ("CD", "Diffusion + Distillation", "Song et al., 2023"),
    "pd": ("PD", "Diffusion + Distillation", "Salimans & Ho, 2022"),
    "ct": ("CT", "Direct Generation", "Song et al., 2023"),
    "edm": ("EDM", "Direct Generation", "Karras et al., 2022"),
    "ddim": ("DDIM", "Diffusion + Samplers", "Song et al., 2020"),
}


def record(
    method: str = "cd",
    nfe: int = 1,
    seed: int = 0,
    metrics: Mapping[str, float | Metric] | None = None,
    *,
    dataset: str = "cifar10",
    samples: int = 50_000,
    protocol: str = "paper",
    titles: Mapping[str, str] | None = None,
    counted: float | None = None,
    **identity: Any,
) -> Record:
    """One record; ``identity`` adds entries to what identifies it."""
    label, group, reference = GROUPS.get(method, (method.upper(), "Direct Generation", ""))
    figures = {"fid": 3.5, "is": 9.5} if metrics is None else metrics
    described: dict[str, Any] = {"name": protocol}
    if titles:
        described["metric_titles"] = dict(titles)
    return Record(
        method=method,
        label=label,
        group=group,
        reference=reference,
        dataset=dataset,
        nfe=nfe,
        nfe_counted=nfe if counted is None else counted,
        seed=seed,
        samples=samples,
        metrics={k: v if isinstance(v, Metric) else Metric(v) for k, v in figures.items()},
        protocol=protocol,
        protocol_fingerprint=(protocol.encode().hex() + "0" * 16)[:16],
        identity={
            "method": method,
            "dataset": dataset,
            "nfe": nfe,
            "seed": seed,
            "samples": samples,
            "protocol": described,
            **identity,
        },
    )
