"""Recipes: every shipped file parses, the paper's are the paper's, and what a user writes wrong is named."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cmbench_baselines.ddim import DDIMRecipe
from cmbench_baselines.edm_samplers import EDMSDERecipe
from cmbench_baselines.unipc import UNIPC, UniPCRecipe

from cmbench import methods, recipes, registry
from cmbench.consistency.methods import CDRecipe, CTRecipe
from cmbench.errors import UsageError
from cmbench.networks import build
from cmbench.recipes import Common, differences, merge, overrides, parse
from cmbench.training.fit import Fit

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "imagenet64": ((3, 64, 64), 1000),
    "lsun-bedroom": ((3, 256, 256), 0),
    "lsun-cat": ((3, 256, 256), 0),
    "generic": ((3, 32, 32), 0),
}


def shipped() -> Iterator[tuple[str, str, str, str]]:
    """(package, data set, name, preset) of every table in every shipped file."""
    packages = {"cmbench", *(methods.get(name).package for name in ("cd", "ct", "edm", "ddim", "pd"))}
    for package in sorted(packages):
        for path in sorted(Path(str(files(package))).glob("recipes/*/*.toml")):
            for preset in tomllib.loads(path.read_text()):
                yield package, path.parent.name, path.stem, preset


SHIPPED = list(shipped())


def test_something_is_shipped():
    assert {(d, n) for _, d, n, _ in SHIPPED} >= {
        (d, n) for d in ("digits", "mnist", "cifar10", "imagenet64") for n in ("common", "cd", "ct", "edm")
    }


@pytest.mark.parametrize(("package", "dataset", "name", "preset"), SHIPPED)
def test_every_shipped_recipe_parses(package: str, dataset: str, name: str, preset: str):
    cls = Common if name == "common" else methods.get(name).recipe
    recipe = recipes.load(cls, package, dataset, name, preset, {})
    assert isinstance(recipe, cls)
    json.dumps(differences(recipe), allow_nan=False)
    assert dataset in SHAPES  # a folder of another name would never be read
    if name in ("cd", "ct"):
        for nfe in (1, 2, 3, 8):
            assert methods.get(name).refuses(nfe, recipe) is None
        from cmbench.consistency.function import check_taus

        common = recipes.load(Common, "cmbench", dataset, "common", preset, {})
        for taus in recipe.taus.values():
            check_taus(taus, common.noise)


@pytest.mark.parametrize("dataset", SHAPES)
def test_every_preset_of_a_method_has_its_common_part_and_its_teacher(dataset: str):
    common = set(recipes.preset_names("cmbench", dataset, "common"))
    for _, folder, name, preset in SHIPPED:
        if folder == dataset and name != "common":
            assert preset in common, name
            if name != "ct":
                assert preset in recipes.preset_names(methods.get("edm").package, dataset, "edm")


@pytest.mark.parametrize(("dataset", "preset"), [(d, p) for _, d, n, p in SHIPPED if n == "common"])
def test_the_network_of_every_preset_builds(dataset: str, preset: str):
    shape, classes = SHAPES[dataset]
    common = recipes.load(Common, "cmbench", dataset, "common", preset, {})
    with torch.device("meta"):
        network = build(common.network, shape, classes)
        labels = torch.zeros(2, dtype=torch.int64) if common.network.get("class_conditional") else None
    size = sum(p.numel() for p in network.parameters()) / 1e6
    if (
        preset == "paper"
    ):  # millions of parameters: NCSN++ of the CIFAR-10 code, ADM of the released checkpoints
        assert size == pytest.approx({"cifar10": 56, "imagenet64": 296}.get(dataset, 527), rel=0.03)
    if dataset in ("digits", "mnist", "generic") or preset == "smoke":
        with torch.device("meta"):
            out = network(torch.zeros(2, *shape), torch.zeros(2), labels)
        assert out.shape == (2, *shape)


@pytest.mark.parametrize("dataset", [d for d in SHAPES if d != "generic"])
def test_the_protocol_of_every_preset_exists(dataset: str):
    from cmbench.metrics import protocols

    for preset in recipes.preset_names("cmbench", dataset, "common"):
        common = recipes.load(Common, "cmbench", dataset, "common", preset, {})
        protocols.get(common.protocol)


# Song et al. (2023), Table 3. Columns: rate, batch, mu (or mu0), N (or s0, s1), EMA, thousands of iterations.
TABLE_3 = {
    ("cifar10", "cd"): (4e-4, 512, 0.0, 18, 0.9999, 800),
    ("cifar10", "ct"): (4e-4, 512, 0.9, (2, 150), 0.9999, 800),
    ("imagenet64", "cd"): (8e-6, 2048, 0.95, 40, 0.999943, 600),
    ("imagenet64", "ct"): (8e-6, 2048, 0.95, (2, 200), 0.999943, 800),
    ("lsun-bedroom", "cd"): (1e-5, 2048, 0.95, 40, 0.999943, 600),
    ("lsun-bedroom", "ct"): (1e-5, 2048, 0.95, (2, 150), 0.999943, 1000),
    ("lsun-cat", "cd"): (1e-5, 2048, 0.95, 40, 0.999943, 600),
    ("lsun-cat", "ct"): (1e-5, 2048, 0.95, (2, 150), 0.999943, 1000),
}


@pytest.mark.parametrize(("dataset", "name"), TABLE_3)
def test_paper_presets_are_table_3(dataset: str, name: str):
    rate, batch, mu, points, ema, iterations = TABLE_3[dataset, name]
    cls = {"cd": CDRecipe, "ct": CTRecipe}[name]
    recipe = recipes.load(cls, "cmbench", dataset, name, "paper", {})
    fit = recipe.fit
    assert (fit.learning_rate, fit.batch_size, fit.ema, fit.steps) == (rate, batch, ema, iterations * 1000)
    assert fit.optimizer == "radam"
    assert fit.schedule == "constant"
    assert fit.warmup_steps == 0
    assert fit.flip
    assert not fit.ema_warmup
    assert recipe.metric == "lpips"
    assert recipe.weighting == "uniform"
    if name == "cd":
        assert (recipe.target_ema, recipe.points, recipe.solver) == (mu, points, "heun")
    else:
        assert (recipe.mu0, (recipe.s0, recipe.s1)) == (mu, points)
        assert (recipe.schedule, recipe.decay) == ("adaptive", "paper")
    common = recipes.load(Common, "cmbench", dataset, "common", "paper", {})
    assert (common.noise.sigma_min, common.noise.sigma_max) == (0.002, 80)
    assert (common.noise.rho, common.noise.sigma_data) == (7, 0.5)
    assert common.samples == 50_000


MIDDLE = {
    ("cifar10", "cd"): 0.585,
    ("imagenet64", "cd"): 1.382,
    ("imagenet64", "ct"): 1.913,
    ("lsun-bedroom", "cd"): 4.366,
    ("lsun-cat", "cd"): 4.366,
    ("lsun-bedroom", "ct"): 3.991,
    ("lsun-cat", "ct"): 5.249,
}


@pytest.mark.parametrize(("dataset", "name"), MIDDLE)
def test_two_step_levels_are_those_of_the_released_samplers(dataset: str, name: str):
    for preset in ("paper", "released"):
        recipe = recipes.load({"cd": CDRecipe, "ct": CTRecipe}[name], "cmbench", dataset, name, preset, {})
        assert recipe.taus == {"2": (MIDDLE[dataset, name],)}


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet64", "lsun-bedroom", "lsun-cat"])
def test_released_decay_differs_from_the_papers(dataset: str):
    assert recipes.load(CTRecipe, "cmbench", dataset, "ct", "released", {}).decay == "released"


def test_a_data_set_without_recipes_takes_the_generic_ones():
    own = recipes.load(CDRecipe, "cmbench", "somebodys-images", "cd", "quick", {})
    assert own == recipes.load(CDRecipe, "cmbench", "generic", "cd", "quick", {})
    assert own != CDRecipe()


def test_a_method_without_recipes_has_its_defaults_as_quick():
    assert recipes.load(CDRecipe, "cmbench", "digits", "no-such-method", "quick", {}) == CDRecipe()
    with pytest.raises(UsageError, match="unknown preset"):
        recipes.load(CDRecipe, "cmbench", "digits", "no-such-method", "paper", {})


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper", "released"])
def test_a_method_that_trains_nothing_needs_no_recipe_file(preset: str):
    def load(dataset: str, **over: Any) -> UniPCRecipe:
        return recipes.load(UniPCRecipe, UNIPC.package, dataset, "unipc", preset, over, trains=False)

    assert load("cifar10") == load("digits") == UniPCRecipe()
    assert load("cifar10", order=2) == UniPCRecipe(order=2)


def test_a_file_of_a_method_that_trains_nothing_names_its_presets():
    load = partial(recipes.load, EDMSDERecipe, "cmbench_baselines", "imagenet64", "edm-sde", trains=False)
    assert load("paper", {}) == EDMSDERecipe(s_churn=40, s_min=0.05, s_max=50, s_noise=1.003)
    with pytest.raises(UsageError, match="unknown preset"):
        load("quick", {})


def test_ddim_is_uniform_in_time_on_lsun_as_in_its_paper():
    for dataset, spacing in (("cifar10", "time-quadratic"), ("lsun-cat", "time"), ("lsun-bedroom", "time")):
        made = recipes.load(DDIMRecipe, "cmbench_baselines", dataset, "ddim", "paper", {}, trains=False)
        assert made.spacing == spacing


def test_preset_then_settings():
    made = recipes.load(CDRecipe, "cmbench", "digits", "cd", "quick", overrides(["fit.steps=7", "points=5"]))
    base = recipes.load(CDRecipe, "cmbench", "digits", "cd", "quick", {})
    assert made == replace(base, points=5, fit=replace(base.fit, steps=7))


# --- what a user writes ----------------------------------------------------------------------------


def test_overrides():
    assert overrides(["a=1", "b.c=2.5", "b.d=yes", "b.e=[1, 2]", "f='x y'", "g=true", "h=1e-3", "cd.taus.2=[0.5]"]) == {
        "a": 1, "b": {"c": 2.5, "d": "yes", "e": [1, 2]}, "f": "x y", "g": True, "h": 1e-3,
        "cd": {"taus": {"2": [0.5]}},
    }  # fmt: skip
    assert overrides(["a=x=y"]) == {"a": "x=y"}
    assert overrides([]) == {}


@pytest.mark.parametrize("setting", ["points", "=3", "  =3", ""])
def test_a_setting_without_name_or_value_is_refused(setting: str):
    with pytest.raises(UsageError, match="key=value"):
        overrides([setting])


def test_a_setting_inside_a_value_is_refused():
    with pytest.raises(UsageError, match="'a' already has a value"):
        overrides(["a=1", "a.b=2"])


def test_unknown_keys_are_named_with_the_nearest():
    with pytest.raises(UsageError, match="unknown setting of cd 'pionts': did you mean 'points'"):
        parse(CDRecipe, {"pionts": 3}, "cd")
    with pytest.raises(UsageError, match=r"unknown setting of cd\.fit 'stesp': did you mean 'steps'"):
        parse(CDRecipe, {"fit": {"stesp": 3}}, "cd")
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        recipes.load(CDRecipe, "cmbench", "digits", "cd", "quikc", {})


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"points": 3.5}, "cd.points"), ({"points": "many"}, "cd.points"), ({"points": True}, "cd.points"),
        ({"target_ema": "x"}, "cd.target_ema"), ({"target_ema": False}, "cd.target_ema"),
        ({"fit": 3}, "cd.fit"), ({"fit": {"flip": 1}}, "cd.fit.flip"), ({"fit": {"steps": "10"}}, "cd.fit.steps"),
        ({"taus": {"2": 0.5}}, "cd.taus.2"), ({"taus": {"2": ["a"]}}, "cd.taus.2"), ({"taus": [0.5]}, "cd.taus"),
        ({"solver": "hune"}, "cd.solver"), ({"solver": 3}, "cd.solver"),
        ({"seed": "abc"}, "cd.seed"), ({"seed": 1.5}, "cd.seed"), ({"seed": True}, "cd.seed"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_say_where(values: Mapping[str, Any], where: str):
    with pytest.raises(UsageError) as caught:
        parse(CDRecipe, values, "cd")
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_fit():
    made = parse(
        CDRecipe,
        {
            "target_ema": 0,
            "solver": "euler",
            "taus": {"2": [1], "3": [2.0, 1.0]},
            "seed": 3,
            "fit": {"clip": 1},
        },
        "cd",
    )
    assert made == CDRecipe(
        Fit(clip=1.0), target_ema=0.0, solver="euler", taus={"2": (1.0,), "3": (2.0, 1.0)}, seed=3
    )
    assert isinstance(made.fit.clip, float)
    edm = methods.get("edm").recipe
    assert parse(edm, {"seed": "none"}, "edm").seed is None
    assert parse(edm, {}, "edm").seed == 0


def test_settings_are_checked_beyond_their_type():
    with pytest.raises(UsageError):
        parse(Common, {"samples": 0}, "common")
    with pytest.raises(UsageError):
        parse(Common, {"noise": {"sigma_min": 100}}, "common")


# --- identities ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    a: int = 1
    b: float = 2.0


@dataclass(frozen=True)
class Old:
    inner: Inner = field(default_factory=Inner)
    kind: Literal["x", "y"] = "x"
    levels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class New(Old):
    added: float = 0.0


def test_differences_are_what_differs_from_the_defaults():
    assert differences(Old()) == {}
    assert differences(Old(Inner(b=3.0), "y", {"2": (0.5,)})) == {
        "inner": {"b": 3.0}, "kind": "y", "levels": {"2": [0.5]},
    }  # fmt: skip
    assert differences(New(Inner(a=1), "x")) == {}
    assert differences(New(Inner(a=5))) == differences(Old(Inner(a=5)))
    assert differences(New(added=1.0)) == {"added": 1.0}


def test_merge_goes_table_by_table_and_leaves_its_arguments_alone():
    base, over = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 6}
    assert merge(base, over) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 6}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}
    assert merge({"a": 1}, {"a": {"x": 1}}) == {"a": {"x": 1}}


def test_all_registered_methods_have_a_quick_recipe_for_the_digits():
    for name in registry.names("method"):
        method = methods.get(name)
        assert "quick" in (recipes.preset_names(method.package, "digits", name) or ["quick"])
