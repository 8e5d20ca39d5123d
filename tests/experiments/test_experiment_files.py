"""Experiment files: what ships makes sense on every data set that it names, and what a user writes wrong is named."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from cmbench import methods, recipes
from cmbench.errors import UsageError
from cmbench.experiments import engine, recipe
from cmbench.recipes import Common

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"
ARM = {"name": "a", "label": "A", "method": "cd"}
PLAIN = {"title": "T", "x": "step", "arms": [ARM]}


def shipped() -> list[tuple[str, str, str | None]]:
    """(experiment, data set, preset) of all that the shipped files name."""
    return [
        (name, dataset, preset)
        for name in recipe.names()
        for dataset, table in recipe.load(name)[1].datasets.items()
        for preset in (None, *table.presets)
    ]


@pytest.mark.parametrize(("name", "dataset", "preset"), shipped())
def test_every_arm_of_what_ships_can_be_run(name: str, dataset: str, preset: str | None):
    """Recipes of the arm and of all that it learns from, its settings, its milestones and its evaluations."""
    made = engine.resolved(recipe.on(*recipe.load(name), dataset, preset))
    recipes.load(Common, "cmbench", dataset, "common", made.preset, {})
    for arm in made.arms:
        method = methods.get(arm.method)
        loaded = load(method, made, arm.settings)
        if made.milestones:
            assert made.milestones[-1] <= loaded.fit.steps, arm.name
        for nfe in arm.nfe or made.nfe or method.nfes:
            assert method.refuses(nfe, loaded) is None, (arm.name, nfe)
            parent = method.parent(method.variant(nfe, loaded), loaded)
            if parent and parent.method != method.name:
                load(methods.get(parent.method), made, {})


def load(method: methods.Method, made: recipe.Experiment, settings) -> object:
    over = recipes.merge(made.settings.get(method.name, {}), settings)
    return recipes.load(
        method.recipe, method.package, made.dataset, method.name, made.preset, over,
        trains=method.train is not None,
    )  # fmt: skip


def test_the_panels_and_tables_of_the_paper_ship():
    assert {"fig3a", "fig3b", "fig3c", "fig3d", "fig4", "table1", "table2"} == set(recipe.names())
    heun = recipe.load("fig3c")[1].arms
    assert [arm.settings["points"] for arm in heun] == [9, 12, 18, 36, 50, 60, 80, 120]


def test_a_shared_arm_of_two_panels_is_the_same_training():
    """The l2 arm of fig3a, Heun with N = 18 in fig3b and fig3c: trained and measured once."""
    found = []
    for name, arm_name in (("fig3a", "l2"), ("fig3b", "heun-18"), ("fig3c", "heun-18")):
        made = recipe.on(*recipe.load(name), "digits")
        (arm,) = (arm for arm in made.arms if arm.name == arm_name)
        loaded = load(methods.get("cd"), made, arm.settings)
        found.append((recipes.differences(loaded), made.milestones, made.seeds))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": [ARM]}, "arm"),
        ({"x": "steps"}, "x"),
        ({"arms": []}, "an experiment has arms"),
        ({"arms": [ARM, ARM]}, "their names differ"),
        ({"arms": [{**ARM, "setings": {}}]}, "setings"),
        ({"arms": [{"name": "a", "label": "A"}]}, "method"),
        ({"milestones": [10, 10]}, "rise"),
        ({"milestones": [0, 10]}, "positive"),
        ({"milestones": 10}, "milestones"),
        ({"milestones": ["ten"]}, "milestones"),
        ({"seeds": ["one"]}, "seeds"),
        ({"datasets": {"digits": {"milestones": [20, 10]}}}, "tiny.datasets.digits.milestones"),
        ({"datasets": {"digits": {"milestone": [20, 10]}}}, "milestone"),
        ({"datasets": {"digits": {"arms": {"b": {}}}}}, "unknown arm in tiny.datasets.digits"),
        ({"datasets": {"digits": {"only": ["b"]}}}, "unknown arm in tiny.datasets.digits"),
        ({"datasets": {"digits": {"presets": {"quick": {"arms": {"aa": {}}}}}}}, "did you mean 'a'"),
        ({"datasets": {"digits": {"presets": {"quick": {"preset": "x"}}}}}, "preset"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(change: dict, message: str):
    with pytest.raises(UsageError) as raised:
        recipe.parse({**PLAIN, **change}, "tiny")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_a_title_says_so():
    with pytest.raises(UsageError, match="title"):
        recipe.parse({"x": "step", "arms": [ARM]}, "tiny")


def test_an_unknown_experiment_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'fig3a'"):
        recipe.load("fig3aa")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "broken.toml").write_text("title = ")
    for name in ("broken.toml", "absent.toml"):
        with pytest.raises(UsageError, match=name):
            recipe.load(str(tmp_path / name))


def test_a_data_set_without_milestones_is_none_of_the_experiments():
    with pytest.raises(UsageError, match=r"no milestones for imagenet64.*digits"):
        recipe.on(*recipe.load("fig3a"), "imagenet64")


def test_the_data_set_changes_the_experiment_and_the_preset_changes_the_data_set(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(
        """
title = "Mine"
x = "step"
milestones = [1, 2]
settings.cd.points = 10
[[arms]]
name = "a"
label = "A"
method = "cd"
settings = { metric = "l1", fit = { steps = 5 } }
[[arms]]
name = "b"
label = "B"
method = "cd"
[datasets.digits]
preset = "long"
milestones = [3]
settings.cd.solver = "euler"
arms.a.settings.fit.batch_size = 7
[datasets.digits.presets.short]
seeds = [4, 5]
only = ["a"]
arms.a = { label = "A, short", settings = { metric = "l2" } }
"""
    )
    name, file = recipe.load(str(tmp_path / "mine.toml"))
    elsewhere, long, short = (
        recipe.on(name, file, *place) for place in (("mnist",), ("digits",), ("digits", "short"))
    )
    assert (elsewhere.name, elsewhere.preset, elsewhere.milestones) == ("mine", "quick", (1, 2))
    assert (long.preset, long.milestones, long.seeds, len(long.arms)) == ("long", (3,), (0,), 2)
    assert long.settings == {"cd": {"points": 10, "solver": "euler"}}
    assert long.arms[0].settings == {"metric": "l1", "fit": {"steps": 5, "batch_size": 7}}
    assert (short.preset, short.milestones, short.seeds) == ("short", (3,), (4, 5))
    assert [(arm.name, arm.label, arm.settings["metric"]) for arm in short.arms] == [("a", "A, short", "l2")]


def test_evaluations_are_one_along_a_training_and_the_methods_own_at_its_end():
    along = recipe.on("tiny", recipe.parse({**PLAIN, "milestones": [1]}, "tiny"), "digits")
    ends = recipe.on("tiny", recipe.parse({**PLAIN, "x": "nfe", "milestones": [1]}, "tiny"), "digits")
    assert (along.nfe, along.milestones) == ((1,), (1,))
    assert (ends.nfe, ends.milestones) == ((), ())


def test_the_perceptual_arm_is_lpips_where_its_weights_are_and_says_what_it_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arm = {**ARM, "label": "CD, {perceptual}", "settings": {"metric": "perceptual"}}
    file = recipe.parse({**PLAIN, "milestones": [1], "arms": [arm]}, "tiny")

    def resolved(dataset: str) -> tuple[str, str]:
        (made,) = engine.resolved(recipe.on("tiny", file, dataset)).arms
        return made.settings["metric"], made.label

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert resolved("mnist") == ("features", "CD, LPIPS formula, mnist-cnn features")
    assert resolved("imagenet64") == (
        "lpips",
        "CD, LPIPS",
    )  # no classifier of ours: fails with a reason if offline
    weights = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert resolved("mnist") == ("lpips", "CD, LPIPS")


def test_the_example_of_the_page_is_one_and_shows_every_key():
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = recipe.parse(tomllib.loads(example), "example")
    made = recipe.on("example", file, "digits")
    assert made.milestones == (50, 1000) and made.arms[1].settings == {"weighting": "karras", "metric": "l1"}
    for cls in (recipe.File, recipe.Arm, recipe.ArmChange, recipe.OnDataset):
        for item in dataclasses.fields(cls):
            assert item.name in example, item.name
    for arm in made.arms:
        load(methods.get("cd"), made, arm.settings)
