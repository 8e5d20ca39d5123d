"""Classes, the null class and classifier-free guidance: from label dropout to the row of the table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from mixture import SHAPE, ExactNetwork, Mixture
from tiny_runs import SAMPLES, SETTINGS, run, shop, sweep
from torch import nn

from cmbench import methods, records, registry
from cmbench.benchmark import Plan
from cmbench.diffusion.grid import karras_sigmas
from cmbench.diffusion.guidance import drop_labels, guided
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError
from cmbench.guidance import NONE, Guidance
from cmbench.methods import Model
from cmbench.networks.layers import NULL
from cmbench.report import tables
from cmbench.sampling.generate import EvaluationCounter, Source
from cmbench.sampling.seeds import class_labels

CPU = torch.device("cpu")
NOISE = NoiseRange()
WIDE = Mixture(std=0.4)  # components that overlap, so that guidance has something to do
CLASSES = len(WIDE.centres)
CONDITIONAL = ("network.class_conditional=true", "edm.label_dropout=0.1")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMBENCH_CACHE", str(shared_cache))
    return shared_cache


def points(count: int = 40):
    """Noisy points [B, 1, 1, 2] at noise levels from 0.05 to 20, and labels [B]."""
    x = WIDE.sample(count, seed=0) * 3
    return x, torch.logspace(-1.3, 1.3, count, dtype=torch.float64), torch.arange(count) % CLASSES


def source(name: str, nfe: int, guidance: Guidance = NONE, network: nn.Module | None = None) -> Source:
    method = methods.get(name)
    model = Model(network or ExactNetwork(WIDE), NOISE, guidance)
    return Source(method.sample_with(model, method.recipe(), nfe), SHAPE, CLASSES, 5, CPU)


# --- the denoiser ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_the_guided_denoiser_is_the_formula(weight: float):
    x, sigma, labels = points()
    null = WIDE.denoise(x, sigma, None)
    wanted = null + weight * (WIDE.denoise(x, sigma, labels) - null)
    torch.testing.assert_close(guided(WIDE.denoise, Guidance(weight))(x, sigma, labels), wanted)


def test_levels_outside_the_interval_stay_conditional():
    x, sigma, labels = points()
    made = guided(WIDE.denoise, Guidance(3.0, (0.3, 2.0)))(x, sigma, labels)
    inside = (sigma > 0.3) & (sigma <= 2.0)
    assert 5 < int(inside.sum()) < 35
    everywhere = guided(WIDE.denoise, Guidance(3.0))(x, sigma, labels)
    torch.testing.assert_close(made[inside], everywhere[inside])
    torch.testing.assert_close(made[~inside], WIDE.denoise(x, sigma, labels)[~inside])


def test_weight_one_is_the_conditional_sampler():
    network = ExactNetwork(WIDE)
    assert torch.equal(
        source("ddim", 8, NONE, network).images(range(6)),
        source("ddim", 8, Guidance(1.0), network).images(range(6)),
    )
    labelled = source("ddim", 60).images(range(400)).flatten(1)
    labels = class_labels(5, range(400), CLASSES)
    for label, centre in enumerate(WIDE.centres):
        mean = labelled[labels == label].mean(0)
        torch.testing.assert_close(mean, torch.tensor(centre), atol=0.12, rtol=0)


def test_more_guidance_makes_samples_more_telling_of_their_class():
    right = []
    for weight in (0.0, 0.5, 1.0, 1.5):
        made = source("ddim", 20, Guidance(weight))
        x, labels = made.images(range(600)), class_labels(5, range(600), CLASSES)
        centres = torch.tensor(WIDE.centres)
        nearest = (x.flatten(1)[:, None] - centres).square().sum(2).argmin(1)
        right.append(float((nearest == labels).float().mean()))
    assert right[0] < 0.45 < right[1] < right[2] < 0.93 < right[3], right


def test_samples_do_not_depend_on_the_batch():
    for guidance in (Guidance(2.0), Guidance(2.0, (0.2, 5.0)), Guidance(0.0)):
        made = source("edm", 9, guidance)
        whole = made.images(range(13))
        for size in (1, 5):
            cut = torch.cat([images for _, images in made.batches(0, 13, size)])
            torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


# --- evaluations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guidance", "twice"),
    [(NONE, 0), (Guidance(1.5), 10), (Guidance(0.0), 0), (Guidance(1.5, (0.5, 5.0)), None)],
)
def test_evaluations_are_counted(guidance: Guidance, twice: int | None):
    if twice is None:
        sigmas = karras_sigmas(NOISE, 10)
        twice = int(((sigmas > 0.5) & (sigmas <= 5)).sum())
        assert 0 < twice < 10
    network = ExactNetwork(WIDE)
    counter = EvaluationCounter(network)
    source("euler", 10, guidance, network).images(range(4))
    assert counter.rows == 4 * (10 + twice)


def some_nfe(method: methods.Method) -> int:
    """A number of evaluations that the method can do, of several steps where it can."""
    return next(n for n in (*range(3, 2000), 1, 2) if not method.refuses(n, method.recipe()))


def on_the_shared_network() -> list[str]:
    """The methods that sample with the EDM network."""
    found = []
    for name in registry.names("method"):
        method = methods.get(name)
        recipe = method.recipe()
        parent = method.parent(method.variant(some_nfe(method), recipe), recipe)
        if name == "edm" or (method.train is None and parent is not None and parent.method == "edm"):
            found.append(name)
    return found


@pytest.mark.parametrize("name", on_the_shared_network())
def test_every_sampler_of_the_shared_network_is_guided(name: str):
    seen: list[torch.Tensor] = []

    class Spy(ExactNetwork):
        def forward(self, x, c_noise, labels=None):
            seen.append(labels)
            return super().forward(x, c_noise, labels)

    method = methods.get(name)
    source(name, some_nfe(method), Guidance(2.0), Spy(WIDE)).images(range(2))
    labels = torch.cat(seen)
    assert int((labels == NULL).sum()) == int((labels != NULL).sum()) > 0


def test_a_sampler_that_goes_round_the_denoiser_is_not_guided_in_silence():
    cd = methods.get("cd")
    cd.sample_with(Model(nn.Identity(), NOISE), cd.recipe(), 1)
    with pytest.raises(UsageError, match="cd does not sample through the denoiser"):
        cd.sample_with(Model(nn.Identity(), NOISE, Guidance(2.0)), cd.recipe(), 1)


# --- training --------------------------------------------------------------------------------------


def test_labels_are_dropped_at_the_rate_and_no_others_change():
    labels = torch.arange(20_000) % 10
    dropped = drop_labels(labels, 0.1, torch.Generator().manual_seed(0))
    assert float((dropped == NULL).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[dropped != NULL], labels[dropped != NULL])
    assert drop_labels(labels, 0.0, torch.Generator()) is labels
    assert drop_labels(None, 0.1, torch.Generator()) is None


def test_label_dropout_leaves_the_other_draws_of_a_step_alone():
    from cmbench_baselines.edm import DenoisingObjective

    seen = []

    class Spy(nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append((x, c_noise, labels))
            return x

    x, labels = torch.zeros(500, 1, 2, 2), torch.arange(500) % 10
    for rate in (0.0, 0.3):
        DenoisingObjective(NOISE, -1.2, 1.2, rate).loss(Spy(), x, labels, 0, torch.Generator().manual_seed(3))
    (x0, c0, labels0), (x1, c1, labels1) = seen
    assert torch.equal(x0, x1) and torch.equal(c0, c1) and torch.equal(labels0, labels)
    assert 100 < int((labels1 == NULL).sum()) < 200


def test_a_setting_that_is_off_moves_no_key(tmp_path):
    def key(*extra: str) -> str:
        workshop = shop(tmp_path, *extra)
        return workshop.need(methods.get("edm"), 3, 0).key

    assert key("edm.label_dropout=0.0") == key("guidance=1.5") == key()
    assert key(*CONDITIONAL) != key("network.class_conditional=true") != key()


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (("edm.label_dropout=0.1",), "edm.label_dropout is for a class-conditional network"),
        (("edm.label_dropout=1.0",), "edm.label_dropout must lie in [0, 1)"),
        (("guidance=-1",), "guidance must be a number from 0 up"),
        (("guidance=2", "guidance_interval=[3, 1]"), "low < high"),
        (("guidance=2", "guidance_interval=[3]"), "low < high"),
        (("guidance_interval=[1, 3]",), "for a guidance other than 1"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings: tuple[str, ...], part: str):
    with pytest.raises(UsageError) as raised:
        shop(tmp_path, *settings).need(methods.get("edm"), 3, 0)
    assert part in str(raised.value)


# --- records and tables ----------------------------------------------------------------------------


def plans(out: Path, name: str, nfe: int, *extra: str) -> list[Plan | str]:
    return list(sweep(out, *extra).plans([methods.get(name)], [nfe], [0]))


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("ddim", (), "set network.class_conditional=true edm.label_dropout=0.1"),
        ("edm", ("network.class_conditional=true",), "set edm.label_dropout=0.1"),
        ("cd", CONDITIONAL, "'cd' trains without"),
        ("pd", CONDITIONAL, "'pd' trains without"),
    ],
)
def test_what_cannot_be_guided_is_left_out_with_a_line(tmp_path, name: str, settings, part: str):
    (line,) = plans(tmp_path, name, 1, *settings, "guidance=1.5")
    assert line.startswith(f"{name} at NFE 1 is left out: guidance needs a ")
    assert part in line
    assert not list(tmp_path.rglob("*.safetensors"))


def test_guidance_is_part_of_a_records_identity_and_of_nothing_else(tmp_path):
    def plan(*extra: str) -> Plan:
        (made,) = plans(tmp_path, "ddim", 4, *CONDITIONAL, *extra)
        assert isinstance(made, Plan)
        return made

    bare = plan()
    assert plan("guidance=1.0").key == bare.key
    assert "guidance" not in bare.identity
    strong, narrow = plan("guidance=2"), plan("guidance=2", "guidance_interval=[0.2, 5]")
    assert strong.identity["guidance"] == {"weight": 2.0}
    assert narrow.identity["guidance"] == {"weight": 2.0, "interval": [0.2, 5.0]}
    assert len({bare.key, strong.key, narrow.key}) == 3
    assert strong.need.key == narrow.need.key == bare.need.key


@pytest.fixture(scope="module")
def done(tmp_path_factory, shared_cache) -> Path:
    """One conditional network, sampled without guidance, with it, and within an interval."""
    out = tmp_path_factory.mktemp("guided")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMBENCH_CACHE", str(shared_cache))
        for extra in ((), ("guidance=2",), ("guidance=2", "guidance_interval=[0.5, 90]")):
            run(sweep(out, *CONDITIONAL, *extra), ["euler"], (4,))
    return out


def test_records_count_both_evaluations_and_tables_say_so(done: Path):
    found = records.read(done)
    inside = int((karras_sigmas(NOISE, 4) > 0.5).sum())
    assert sorted(record.nfe_counted for record in found) == [4, 4 + inside, 8]
    assert {record.nfe for record in found} == {4}
    assert len({record.checkpoint for record in found}) == 1
    assert len({record.metrics["fid"].value for record in found}) == 3
    (group,) = tables.build(found, dataset="digits", published=()).groups
    notes = {row.nfe.value: (row.method.notes, row.nfe.notes) for row in group.rows}
    assert notes[4] == ((), ())
    assert notes[8] == (
        ("classifier-free guidance w = 2",),
        ("network evaluations counted; 4 asked for",),
    )
    assert notes[4 + inside][0] == ("classifier-free guidance w = 2 for 0.5 < σ ≤ 90",)


def test_a_conditional_row_is_told_from_an_unconditional_one(done: Path, tmp_path):
    plain = run(sweep(tmp_path), ["euler"], (4,))[0].record
    conditional = next(record for record in records.read(done) if record.nfe_counted == 4)
    (group,) = tables.build([plain, conditional], dataset="digits", published=()).groups
    assert any("labels uniform over 10" in note for row in group.rows for note in row.method.notes)


def test_guided_samples_of_given_classes(done: Path, tmp_path, capsys):
    cmbench = Commands(capsys)
    words = ["sample", "--method", "euler", "--nfe", 4, "--device", "cpu", "--offline", "--out", done]
    settings = ["--set", *SETTINGS, *CONDITIONAL, "guidance=2"]

    def images(name: str, *more: object) -> np.ndarray:
        made = cmbench(*words, "--to", tmp_path / name, "--count", 6, *more, *settings)
        assert made.status == 0, made.err
        return np.load(tmp_path / name)["arr_0"].astype(int)

    threes, mixed, drawn = images("a.npz", "--label", 3), images("b.npz", "--label", 3, 4), images("c.npz")
    assert np.abs(threes[::2] - mixed[::2]).max() <= 1
    assert (threes[1::2] != mixed[1::2]).any()
    assert (threes != drawn).any()

    wrong = cmbench(*words, "--to", tmp_path / "d.npz", "--label", 10, *settings)
    assert wrong.status == 2 and "the classes are 0 to 9" in wrong.error
    wrong = cmbench(*words, "--to", tmp_path / "d.npz", "--label", 1, "--set", *SETTINGS)
    assert wrong.status == 2 and "--label is for a class-conditional network" in wrong.error
    wrong = cmbench(*words, "--to", tmp_path / "d.npz", "--set", *SETTINGS, "guidance=2")
    assert wrong.status == 2 and "guidance needs a class-conditional network" in wrong.error


def test_a_given_checkpoint_tells_whether_it_can_be_guided(done: Path, tmp_path):
    (path,) = (done / "checkpoints").glob("*-edm-*.safetensors")
    (plan,) = sweep(tmp_path, "guidance=2", checkpoint=[path]).plans([methods.get("euler")], [4], [0])
    assert isinstance(plan, Plan)  # without network.class_conditional: the file knows
    guided_at = {record.nfe_counted: record for record in records.read(done)}
    again = sweep(tmp_path, "guidance=2", checkpoint=[path]).run(plan).record
    assert again.metrics == guided_at[8].metrics
    assert again.samples == SAMPLES
    workshop = shop(tmp_path, "guidance=2")
    assert "class-conditional" in str(replace(workshop).refusal(methods.get("euler"), 4))
