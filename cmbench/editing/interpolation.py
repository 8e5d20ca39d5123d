"""Interpolation between samples: noise between the noise of two samples, through any method's sampler."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmbench import checkpoints, environment, methods, recipes
from cmbench.consistency.editing import slerp
from cmbench.editing.strips import Strip
from cmbench.editing.tasks import Pixels, to_pixels, trained_recipe
from cmbench.errors import UsageError
from cmbench.methods import Method, Model
from cmbench.sampling.generate import EvaluationCounter, Source, check_labels, open_source
from cmbench.sampling.seeds import SampleRng, initial_noise

if TYPE_CHECKING:
    from torch import nn

    from cmbench.session import Options

REVISION = 1  # raised when a change of the code changes results


@dataclass(frozen=True)
class Generator:
    """A method's network, ready to sample; ``identity``: all that determines its samples, their seed left out."""

    method: Method
    dataset: str
    nfe: int
    source: Source
    network: "nn.Module"
    identity: Mapping[str, Any]


def open_generator(
    method: str | None,
    dataset: str | None,
    nfe: int | None,
    seed: int,
    options: "Callable[[str], Options]",
    given: Sequence[Path] = (),
) -> Generator:
    """The network that makes the samples.

    A checkpoint of the user's says which method and data set it is of, and needs no images of that data set. Otherwise
    the workshop finds the method's checkpoint, or trains it.

    Args:
        method: name, or None: that of the first checkpoint, else CD.
        dataset: name, or None: that of the checkpoint, else digits.
        nfe: evaluations; the fewest that the method is usually shown at where None.
        seed: of training, where no checkpoint is given, and of the samples.
        options: the options of the command, for a data set's name.
        given: the user's checkpoint files.

    Raises:
        UsageError: the method cannot do this NFE, or a checkpoint that it has no use for.
    """
    from cmbench import session

    loaded = [checkpoints.load(path) for path in given]
    chosen = methods.get(method or (loaded[0].header.method if loaded else "cd"))
    nfe = nfe or min(chosen.nfes)
    for one in loaded:
        head = one.header
        if head.method == chosen.name and dataset in (None, head.dataset):
            recipe = trained_recipe(chosen, one)
            if head.variant == chosen.variant(nfe, recipe):
                return _of_checkpoint(chosen, one, recipe, nfe, seed, options(head.dataset))
    opened = options(dataset or (loaded[0].header.dataset if loaded else "digits"))
    shop = session.open_workshop(opened)
    if reason := shop.refusal(chosen, nfe):
        raise UsageError(f"{chosen.name} at NFE {nfe}: {reason}")
    need = shop.need(chosen, nfe, seed)
    shop.check_given([need])
    checkpoint = shop.ensure(need)
    network = checkpoint.network(shop.device)
    source = open_source(shop, chosen, checkpoint, network, nfe=nfe, seed=seed)
    recipe = recipes.differences(shop.recipe(chosen))
    identity = {"recipe": recipe, "checkpoint": checkpoint.sha256[:16]}
    if shop.common.guided.active:
        identity["guidance"] = recipes.differences(shop.common.guided)
    return Generator(chosen, shop.images.name, nfe, source, network, identity)


def _of_checkpoint(
    method: Method, checkpoint: checkpoints.Checkpoint, recipe: Any, nfe: int, seed: int, opened: "Options"
) -> Generator:
    from cmbench import session

    if reason := method.refuses(nfe, recipe):
        raise UsageError(f"{method.name} at NFE {nfe}: {reason}")
    head, device = checkpoint.header, session.choose_device(opened.device)
    network = checkpoint.network(device)
    sampler = method.sample_with(Model(network, head.noise), recipe, nfe)
    source = Source(sampler, head.shape, head.classes, seed, device)
    identity = {"recipe": dict(head.recipe), "checkpoint": checkpoint.sha256[:16]}
    return Generator(method, head.dataset, nfe, source, network, identity)


@torch.no_grad()
def interpolate(
    made_by: Generator, between: tuple[int, int], steps: int, label: int | None = None
) -> tuple[Strip, Pixels]:
    """``steps`` images from one sample to another of the same seed: uint8 [steps, C, H, W], and what they are.

    Their noise lies on the great circle between the noise of both (Song et al., 2023, appendix D). What a stochastic
    sampler draws besides is the same for all images, that of the first sample.

    Raises UsageError where the network wants a class and none is named, or the other way round.
    """
    source = made_by.source
    check_labels([] if label is None else [label], source.classes)
    if source.classes and label is None:
        raise UsageError("this network is class-conditional: name the class, --label 3")
    labels = None if label is None else torch.full((steps,), label, device=source.device)
    first, last = initial_noise(source.seed, between, source.shape)
    noise = slerp(first, last, torch.linspace(0, 1, steps)).float().to(source.device)
    counter = EvaluationCounter(made_by.network)
    images = source.sampler(noise, labels, SampleRng(source.seed, [between[0]] * steps, source.device))
    counter.close()
    method = made_by.method
    identity = {
        "kind": "interpolation",
        "revision": REVISION,
        "method": method.name,
        "method_revision": method.revision,
        "dataset": made_by.dataset,
        "nfe": made_by.nfe,
        "seed": source.seed,
        "between": list(between),
        "steps": steps,
        "label": label,
        **made_by.identity,
    }
    strip = Strip(
        method=method.name,
        label=method.label,
        group=method.group,
        dataset=made_by.dataset,
        nfe=made_by.nfe,
        evaluations=counter.rows / steps,
        seed=source.seed,
        between=between,
        steps=steps,
        identity=identity,
        environment=environment.describe(source.device),
    )
    return strip, to_pixels(images)
