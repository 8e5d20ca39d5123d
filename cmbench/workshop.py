"""From a method's name to its checkpoint: find it, or train it and its parents."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbench import checkpoints, methods, pairs, recipes
from cmbench.checkpoints import Checkpoint, Header
from cmbench.errors import UsageError
from cmbench.methods import Method, Model, TrainJob
from cmbench.pairs import Pairs, PairSet
from cmbench.recipes import Common
from cmbench.records import fingerprint
from cmbench.sharing import Busy, claim

if TYPE_CHECKING:
    from torch import device as Device
    from torch import nn

    from cmbench.data import ImageData
    from cmbench.training.loop import Progress

SHIPPED = Path(__file__).parent / "assets" / "checkpoints"

Begin = Callable[[str], "Callable[[Progress], None]"]
"""Called with a training's title; returns what receives its progress."""


@dataclass(frozen=True)
class PairNeed:
    """One set of synthetic pairs that is wanted, and the network that makes it."""

    pairs: Pairs
    of: "Need"
    identity: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return fingerprint(self.identity)


@dataclass(frozen=True)
class Need:
    """One network that is wanted: everything that determines its training."""

    method: Method
    recipe: Any
    variant: str
    seed: int
    parent: "Need | None"
    identity: Mapping[str, Any]
    pairs: PairNeed | None = None

    @property
    def above(self) -> "tuple[Need, ...]":
        """The networks that this training uses: its teacher, the maker of its pairs."""
        makers = (self.pairs.of,) if self.pairs else ()
        both = (self.parent, *makers) if self.parent else makers
        return tuple({need.key: need for need in both}.values())

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return fingerprint(self.identity)


@dataclass(frozen=True)
class Workshop:
    """Resolves methods to checkpoints for one data set and one set of recipes.

    Attributes:
        images: the data set.
        preset: preset of all recipes.
        settings: ``--set`` values, nested; keys of ``common`` stand at the top, those of a method under its name.
        common: what all methods share, ``settings`` included.
        out: results folder; trained checkpoints go to ``out/checkpoints``, synthetic pairs to ``out/pairs``.
        given: checkpoints named by the user; each serves wherever its method and variant are needed.
        device: where trainings run.
        begin: see :data:`Begin`.
        download: whether a training may fetch what it needs (the backbone of LPIPS).
    """

    images: "ImageData"
    preset: str
    settings: Mapping[str, Any]
    common: Common
    out: Path
    device: "Device"
    given: tuple[Checkpoint, ...] = ()
    begin: Begin = field(default=lambda _title: lambda _progress: None)
    download: bool = True

    def recipe(self, method: Method) -> Any:
        """The method's recipe with the user's settings."""
        return self._recipe(method, self._settings(method))

    def training_recipe(self, method: Method) -> Any:
        """The recipe that trains: re-noising levels, which only samplers read, stay those of the preset.

        So a checkpoint serves whatever levels the user sets.
        """
        own = self._settings(method)
        only_sampled = {method.renoising.setting} if method.renoising else set()
        return self._recipe(method, {key: value for key, value in own.items() if key not in only_sampled})

    def _settings(self, method: Method) -> Mapping[str, Any]:
        own = self.settings.get(method.name, {})
        if not isinstance(own, Mapping):
            raise UsageError(f"--set {method.name}=...: name a setting of it, as {method.name}.key=value")
        return own

    def _recipe(self, method: Method, own: Mapping[str, Any]) -> Any:
        return recipes.load(
            method.recipe,
            method.package,
            self.images.name,
            method.name,
            self.preset,
            own,
            trains=method.train is not None,
        )

    def refusal(self, method: Method, nfe: int) -> str | None:
        """Why this method cannot be sampled with this NFE and the guidance asked for; None where it can."""
        if reason := method.refuses(nfe, self.recipe(method)):
            return reason
        guidance = self.common.guided
        if not guidance.active:
            return None
        need = self.need(method, nfe, seed=0)
        dropout, conditional = getattr(need.recipe, "label_dropout", None), self.classes(need) > 0
        if (given := self._given(need)) and dropout is not None:
            dropout = given.header.recipe.get("label_dropout", 0.0)
        return guidance.refusal(need.method.name, dropout, conditional)

    def classes(self, need: Need) -> int:
        """The classes that a checkpoint's network is conditioned on, 0 where it is unconditional."""
        if given := self._given(need):
            return given.header.classes
        return self.images.classes if need.identity["network"].get("class_conditional") else 0

    def need(self, method: Method, nfe: int, seed: int) -> Need:
        """The network that this method samples with at this NFE and seed."""
        recipe = self.training_recipe(method)
        return self._need(method, recipe, method.variant(nfe, recipe), seed)

    def _need(self, method: Method, recipe: Any, variant: str, seed: int) -> Need:
        parent = method.parent(variant, recipe)
        upward = None
        if parent is not None:
            ancestor = methods.get(parent.method)
            upward = self._need(ancestor, self.training_recipe(ancestor), parent.variant, seed)
        if method.train is None:
            if upward is None:
                raise UsageError(f"method '{method.name}' neither trains nor names a network to sample with")
            return upward
        fixed = getattr(recipe, "seed", None)
        own_seed = seed if fixed is None else fixed
        network = {**self.common.network, **method.network(recipe)}
        if getattr(recipe, "label_dropout", 0.0) and not network.get("class_conditional"):
            raise UsageError(
                f"{method.name}.label_dropout is for a class-conditional network: --set network.class_conditional=true"
            )
        identity = {
            "kind": "checkpoint",
            "method": method.name,
            "revision": method.revision,
            "variant": variant,
            "recipe": recipes.differences(recipe),
            "network": network,
            "noise": asdict(self.common.noise),
            "dataset": self.images.fingerprint,
            "seed": own_seed,
            "parent": self.identity(upward) if upward else None,
        }
        wanted = None
        if (synthetic := method.pairs(variant, recipe)) is not None:
            wanted = self._pair_need(synthetic, upward if synthetic.of == parent else None, seed)
            identity["pairs"] = wanted.identity  # others have no such entry: their keys stay what they were
        return Need(method, recipe, variant, own_seed, upward, identity, wanted)

    def _pair_need(self, wanted: Pairs, of: Need | None, seed: int) -> PairNeed:
        if of is None:
            maker = methods.get(wanted.of.method)
            of = self._need(maker, self.training_recipe(maker), wanted.of.variant, seed)
        identity = {
            "kind": "pairs",
            "of": self.identity(of),
            "settings": dict(wanted.settings),
            "count": wanted.count,
            "seed": wanted.seed,
        }
        return PairNeed(wanted, of, identity)

    def identity(self, need: Need) -> str:
        """What names this checkpoint in other identities: its training's hash, or that of the user's file."""
        given = self._given(need)
        return f"file:{given.sha256}" if given else need.key

    def lineage(self, need: Need) -> list[Any]:
        """How a checkpoint and its parents were trained, the seeds left out: runs that share it may be averaged."""
        if given := self._given(need):
            return [given.sha256]
        own = {key: value for key, value in need.identity.items() if key not in ("seed", "parent")}
        if need.pairs:
            own["pairs"] = {key: value for key, value in need.pairs.identity.items() if key != "of"}
        return [own, *(line for above in need.above for line in self.lineage(above))]

    def _given(self, need: Need) -> Checkpoint | None:
        for checkpoint in self.given:
            if (checkpoint.header.method, checkpoint.header.variant) == (need.method.name, need.variant):
                if checkpoint.header.shape != self.images.shape:
                    raise UsageError(
                        f"{checkpoint.path} makes images of shape {checkpoint.header.shape}, "
                        f"{self.images.name} has {self.images.shape}"
                    )
                return checkpoint
        return None

    def check_given(self, needs: Iterable[Need]) -> None:
        """Raise UsageError where the user gave a checkpoint that serves none of these needs nor their parents."""
        used, open_needs = set(), list(needs)
        while open_needs:
            need = open_needs.pop()
            if given := self._given(need):
                used.add(given.path)
            else:
                open_needs += need.above
        for checkpoint in self.given:
            if checkpoint.path not in used:
                head = checkpoint.header
                stage = f" {head.variant}" if head.variant else ""
                raise UsageError(
                    f"--checkpoint {checkpoint.path}: no method asked for uses a network of '{head.method}'{stage}"
                )

    def path(self, need: Need) -> Path:
        """Where this checkpoint is kept once trained."""
        stage = f"-{need.variant}" if need.variant else ""
        name = f"{self.images.name}-{need.method.name}{stage}-seed{need.seed}-{need.key}.safetensors"
        return self.out / "checkpoints" / name

    def ensure_pairs(self, wanted: PairNeed, *, wait: bool = True) -> PairSet:
        """The pairs, made now (with the network that makes them) where they are not there yet, shard by shard."""
        maker = self.ensure(wanted.of, wait=wait)
        head = maker.header
        stage = f"{wanted.of.method.label} {head.variant}".strip()
        with self._claim(f"pairs-{wanted.key}", wait):
            return pairs.make(
                wanted.pairs,
                Model(maker.network(self.device), head.noise),
                self.out / "pairs" / wanted.key,
                shape=head.shape,
                classes=head.classes,
                batch_size=self.common.batch_size,
                device=self.device,
                report=self.begin(f"pairs of {stage} on {self.images.title}, seed {wanted.pairs.seed}"),
            )

    def find(self, need: Need) -> Checkpoint | None:
        """The checkpoint, if the user gave it, it has been trained, or it ships with the package."""
        if given := self._given(need):
            return given
        if (path := self.path(need)).exists():
            return checkpoints.load(path)
        shipped = sorted(SHIPPED.glob(f"*-{need.key}.safetensors"))
        return checkpoints.load(shipped[0]) if shipped else None

    def ensure(self, need: Need, *, force: bool = False, wait: bool = True) -> Checkpoint:
        """The checkpoint, trained now (with the parents and pairs that are missing) where it is not there yet.

        A training that was interrupted goes on from its last state. ``force`` trains anew, though not the parents,
        and not what the user gave. One process trains a checkpoint at a time; another one waits for it, or without
        ``wait`` is told that it is busy.

        Raises:
            WorkError: the training diverged; Busy, one of its kind: another process is training it.
        """
        found = self._given(need) if force else self.find(need)
        if found:
            return found
        with self._claim(self.path(need).stem, wait):
            made_meanwhile = None if force else self.find(need)
            return made_meanwhile or self._train(need, force, wait)

    def milestone_identity(self, need: Need, step: int) -> dict[str, Any]:
        """What names the network of this training after ``step`` steps."""
        return {**need.identity, "step": step}

    def milestone_path(self, need: Need, step: int) -> Path:
        """Where the network of this training after ``step`` steps is kept, apart from what a training ends with."""
        key = fingerprint(self.milestone_identity(need, step))
        name = self.path(need).stem.removesuffix(need.key)
        return self.out / "experiments" / "checkpoints" / f"{name}step{step}-{key}.safetensors"

    def find_milestone(self, need: Need, step: int) -> Checkpoint | None:
        """The network of this training after ``step`` steps, if it has been kept."""
        path = self.milestone_path(need, step)
        return checkpoints.load(path) if path.exists() else None

    def ensure_milestone(
        self, need: Need, step: int, steps: Collection[int], *, wait: bool = True
    ) -> Checkpoint:
        """The evaluated network after ``step`` steps of a training, which runs now where it has not been kept.

        Args:
            need: the training.
            step: one of ``steps``.
            steps: all that are wanted of this training, so that it runs once.
            wait: for another process that is at it, as in :meth:`ensure`.

        Raises:
            UsageError: the network is the user's file, or the training ends before ``step``.
            WorkError: as in :meth:`ensure`; milestones before a divergence are kept.
        """
        if given := self._given(need):
            raise UsageError(f"{given.path}: of a training that was done elsewhere there are no milestones")
        if found := self.find_milestone(need, step):
            return found
        with self._claim(self.path(need).stem, wait):
            missing = {wanted for wanted in steps if not self.milestone_path(need, wanted).exists()}
            if step in missing:
                from cmbench.training import state as states

                state = self.path(need).with_suffix(".state")
                if min(missing) <= states.step(state):  # an interrupted training that did not ask for them
                    state.unlink()
                self._train(need, force=False, wait=wait, milestones=missing)
        if found := self.find_milestone(need, step):
            return found
        raise UsageError(f"{need.method.name}: the training ends before step {step}")

    @contextmanager
    def _claim(self, name: str, wait: bool) -> Iterator[None]:
        with claim(self.out / "locks" / f"{name}.lock", wait=wait) as mine:
            if not mine:
                raise Busy(f"another process is making {name}")
            yield

    def _train(self, need: Need, force: bool, wait: bool, milestones: Collection[int] = ()) -> Checkpoint:
        from cmbench.training import state as states
        from cmbench.training.loop import Milestones

        teacher = self.ensure(need.parent, wait=wait) if need.parent else None
        sigma_data = self.common.noise.sigma_data
        if teacher and teacher.header.noise.sigma_data != sigma_data:
            theirs = teacher.header.noise.sigma_data
            raise UsageError(
                f"{teacher.path} was trained with sigma_data {theirs}, the recipe has {sigma_data}: "
                f"--set noise.sigma_data={theirs}"
            )
        synthetic = self.ensure_pairs(need.pairs, wait=wait) if need.pairs else None
        path = self.path(need)
        state = path.with_suffix(".state")
        if force:
            state.unlink(missing_ok=True)
        title = f"{need.method.label} {need.variant}".strip() + f" on {self.images.title}, seed {need.seed}"
        started = time.perf_counter() - states.seconds(state)
        network = dict(self.common.network if teacher is None else teacher.header.network)
        network.pop("dropout", None)
        network |= need.method.network(need.recipe)
        if dropout := getattr(need.recipe, "dropout", 0.0):
            network["dropout"] = dropout
        header = Header(
            method=need.method.name,
            variant=need.variant,
            dataset=self.images.name,
            shape=self.images.shape,
            classes=self.images.classes if network.get("class_conditional") else 0,
            network=network,
            noise=self.common.noise,
            recipe=recipes.differences(need.recipe),
            key=need.key,
            seed=need.seed,
            seconds=0.0,
            notes=need.method.notes(need.recipe),
            pairs=cost_of(need.pairs, synthetic) if need.pairs and synthetic else None,
        )

        def keep(evaluated: "nn.Module", step: int, seconds: float) -> None:
            key = fingerprint(self.milestone_identity(need, step))
            head = replace(header, key=key, seconds=round(seconds, 1))
            checkpoints.save(self.milestone_path(need, step), evaluated, head)

        job = TrainJob(
            recipe=need.recipe,
            images=self.images.present(),
            network=network,
            classes=header.classes,
            noise=self.common.noise,
            seed=need.seed,
            device=self.device,
            state=state,
            report=self.begin(title),
            variant=need.variant,
            teacher=teacher.network(self.device) if teacher else None,
            pairs=synthetic,
            milestones=Milestones(frozenset(milestones), keep),
            download=self.download,
        )
        assert need.method.train is not None  # _need made no Need of a method that does not train
        trained = need.method.train(job)
        header = replace(header, seconds=round(time.perf_counter() - started, 1))
        saved = checkpoints.save(path, trained, header)
        state.unlink(missing_ok=True)
        return saved


def cost_of(wanted: PairNeed, made: PairSet) -> dict[str, Any]:
    """What a checkpoint's header keeps of its pairs, which may be deleted once it is trained."""
    return {
        "key": wanted.key,
        "count": len(made),
        "seconds": round(made.seconds, 1),
        "evaluations": made.evaluations,
    }
