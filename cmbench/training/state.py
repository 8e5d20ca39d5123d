"""The state of an unfinished training run: one safetensors file, written atomically, that a restart reads."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmbench.errors import WorkError
from cmbench.paths import atomic


def pack(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested dictionary into its tensors and its JSON-able rest, both under dotted names."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            inner_tensors, inner_rest = pack(value, f"{name}/")
            tensors |= inner_tensors
            rest |= inner_rest
        elif isinstance(value, Tensor):
            tensors[name] = value.detach().contiguous()
        else:
            rest[name] = value
    return tensors, rest


def unpack(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`pack`; integer-like keys come back as integers, as optimisers use them."""
    tree: dict[Any, Any] = {}
    for name, value in [*tensors.items(), *rest.items()]:
        *parents, leaf = (int(part) if part.isdigit() else part for part in name.split("/"))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def save(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a nested dictionary of tensors and JSON values."""
    tensors, rest = pack(tree)
    # Tied and shared tensors are stored once each: safetensors refuses aliases.
    copies = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(copies, temporary, metadata={"state": json.dumps(rest)})


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save` wrote. Raises WorkError where the file is damaged."""
    with _opened(path, str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        rest = json.loads(file.metadata()["state"])
    return unpack(tensors, rest)


def seconds(path: Path) -> float:
    """Training time behind a state, over all runs that led to it; 0 where there is none."""
    return float(_plain(path).get("seconds", 0.0))


def step(path: Path) -> int:
    """The optimiser steps behind a state; 0 where there is none."""
    return int(_plain(path).get("step", 0))


def _plain(path: Path) -> dict[str, Any]:
    """What a state holds beside tensors; nothing where there is no file."""
    if not path.exists():
        return {}
    with _opened(path, "cpu") as file:
        return dict(json.loads(file.metadata()["state"]))


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise WorkError(f"{path} is damaged ({error}); delete it to train from the start") from error
