"""From names to checkpoints: identities, sharing, what the user gives, interrupted and forced trainings."""

import shutil
import time

import numpy as np
import pytest
import torch
from tiny_runs import files, shop

from cmbench import checkpoints, methods, session, workshop
from cmbench.errors import UsageError, WorkError

EDM, CD, CT, PD, DDIM = (methods.get(name) for name in ("edm", "cd", "ct", "pd", "ddim"))


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of every method."""
    out = tmp_path_factory.mktemp("trained")
    made = shop(out)
    return {name: made.ensure(made.need(methods.get(name), 1, 0)) for name in ("edm", "cd", "ct", "pd")}


def key(method, *extra: str, nfe: int = 1, seed: int = 0, tmp_path=None, **changes) -> str:
    made = shop(tmp_path, *extra, **changes)
    return made.identity(made.need(method, nfe, seed))


def test_header_says_what_the_checkpoint_is(trained):
    head = trained["cd"].header
    assert (head.method, head.variant, head.dataset, head.shape, head.classes, head.seed) == (
        "cd", "", "digits", (1, 8, 8), 0, 0,
    )  # fmt: skip
    assert head.recipe["fit"]["steps"] == 40
    assert head.network["width"] == 16
    assert head.key in trained["cd"].path.name
    assert trained["pd"].header.variant == "1"


def test_pd_trains_its_whole_chain(trained):
    made = sorted(p.name.rpartition("-seed")[0] for p in trained["pd"].path.parent.iterdir())
    assert made == ["digits-cd", "digits-ct", "digits-edm", "digits-pd-1", "digits-pd-2", "digits-pd-4"]


def test_what_is_trained_is_not_trained_again(trained):
    folder = trained["cd"].path.parent.parent
    before = files(folder)
    made = shop(folder, begin=lambda title: pytest.fail(f"trains {title}"))
    for name, checkpoint in trained.items():
        assert made.ensure(made.need(methods.get(name), 1, 0)) == checkpoint
    assert files(folder) == before


@pytest.mark.parametrize(
    "setting",
    ["cd.points=11", "cd.fit.steps=41", "cd.metric=l1", "network.width=24", "noise.sigma_max=70", "edm.fit.steps=41",
     "edm.dropout=0.1", "cd.fit.learning_rate=0.002", "cd.seed=5", "edm.seed=5"],
)  # fmt: skip
def test_everything_that_moves_the_weights_is_in_the_key(tmp_path, setting: str):
    assert key(CD, setting, tmp_path=tmp_path) != key(CD, tmp_path=tmp_path)


@pytest.mark.parametrize(
    "setting", ["ct.s1=30", "samples=77", "shard=50", "batch_size=3", "cd.target_ema=0.0"]
)
def test_what_does_not_move_the_weights_is_not(tmp_path, setting: str):
    """Of another method, of sampling, or the preset's own value said again."""
    assert key(CD, setting, tmp_path=tmp_path) == key(CD, tmp_path=tmp_path)


def test_keys_of_seeds_methods_and_variants(tmp_path):
    keys = [
        key(CD, tmp_path=tmp_path),
        key(CD, seed=1, tmp_path=tmp_path),
        key(CT, tmp_path=tmp_path),
        key(EDM, tmp_path=tmp_path),
        *(key(PD, nfe=nfe, tmp_path=tmp_path) for nfe in (1, 2, 4)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(CD, nfe=2, tmp_path=tmp_path) == keys[0]  # one network serves every NFE
    assert key(DDIM, tmp_path=tmp_path) == key(EDM, tmp_path=tmp_path)
    assert key(EDM, seed=7, tmp_path=tmp_path) == key(EDM, tmp_path=tmp_path)  # the teacher's seed is fixed
    assert key(EDM, "edm.seed=none", seed=7, tmp_path=tmp_path) != key(EDM, tmp_path=tmp_path)


def test_key_of_another_data_set(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    np.savez(tmp_path / "b.npz", arr_0=255 - pixels)
    a, b, again = (
        key(CD, tmp_path=tmp_path, dataset="images", data=tmp_path / name)
        for name in ("a.npz", "b.npz", "a.npz")
    )
    assert a == again
    assert len({a, b, key(CD, tmp_path=tmp_path)}) == 3


def test_same_training_same_hash_whatever_was_trained_before(trained, tmp_path):
    torch.randn(17)
    made = shop(tmp_path)
    again = made.ensure(made.need(CD, 2, 0))
    assert again.sha256 == trained["cd"].sha256
    other = made.ensure(made.need(CD, 2, 1))
    assert other.sha256 != again.sha256
    assert len(list((tmp_path / "checkpoints").glob("*-edm-*"))) == 1  # shared


def test_trained_weights_are_not_the_teachers(trained):
    a, b = (trained[name].network().state_dict() for name in ("cd", "edm"))
    assert not all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kill_at", [20, 40])
def test_an_interrupted_training_goes_on_to_the_same_weights(trained, tmp_path, kill_at: int):
    def begin(title: str):
        def report(progress) -> None:
            if title.startswith("CD") and progress.step == kill_at:
                raise Killed

        return report

    broken = shop(tmp_path, begin=begin)
    with pytest.raises(Killed):
        broken.ensure(broken.need(CD, 1, 0))
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert sum(name.endswith(".state") for name in names) == 1
    assert not any("-cd-" in name and name.endswith(".safetensors") for name in names)
    steps = []
    made = shop(tmp_path, begin=lambda title: lambda p: steps.append((title, p.step)))
    assert made.ensure(made.need(CD, 1, 0)).sha256 == trained["cd"].sha256
    assert {step for title, step in steps} == (
        {40} if kill_at == 40 else {20, 40}
    )  # EDM and what was saved are not repeated
    assert not list((tmp_path / "checkpoints").glob("*.state"))


def test_training_time_counts_every_run_that_led_to_the_checkpoint(tmp_path):
    def killed_after_a_while(title: str):
        def report(progress) -> None:
            time.sleep(0.3)
            if progress.step == 40:
                raise Killed

        return report

    broken = shop(tmp_path, begin=killed_after_a_while)
    with pytest.raises(Killed):
        broken.ensure(broken.need(CT, 1, 0))
    made = shop(tmp_path)
    assert made.ensure(made.need(CT, 1, 0)).header.seconds >= 0.3  # the state at step 30 is behind one sleep


def test_force_trains_its_own_network_and_no_other(trained, tmp_path):
    shutil.copytree(trained["cd"].path.parent, tmp_path / "checkpoints")
    titles = []
    made = shop(tmp_path, begin=lambda title: titles.append(title) or (lambda _: None))
    again = made.ensure(made.need(CD, 1, 0), force=True)
    assert titles == ["CD on Digits, seed 0"]
    assert again.sha256 == trained["cd"].sha256


def test_force_does_not_go_on_from_an_old_state(tmp_path):
    made = shop(tmp_path)
    need = made.need(CT, 1, 0)
    state = made.path(need).with_suffix(".state")
    state.parent.mkdir(parents=True)
    state.write_bytes(b"damaged")
    with pytest.raises(WorkError, match="delete it"):
        made.ensure(need)
    made.ensure(need, force=True)
    assert not state.exists()


# --- the user's checkpoints ------------------------------------------------------------------------


def given(tmp_path, *chosen, extra=(), **changes):
    return shop(tmp_path, *extra, checkpoint=[c.path for c in chosen], **changes)


def test_a_given_checkpoint_serves_as_the_methods_own(trained, tmp_path):
    made = given(tmp_path, trained["cd"])
    need = made.need(CD, 1, 5)
    assert made.ensure(need) == trained["cd"]
    assert made.ensure(need, force=True) == trained["cd"]
    assert made.identity(need) == f"file:{trained['cd'].sha256}"
    assert not (tmp_path / "checkpoints").exists()


def test_a_given_checkpoint_serves_as_teacher(trained, tmp_path):
    titles = []
    made = given(tmp_path, trained["edm"], begin=lambda title: titles.append(title) or (lambda _: None))
    student = made.ensure(made.need(CD, 1, 0))
    assert titles == ["CD on Digits, seed 0"]
    assert student.header.key != trained["cd"].header.key  # its teacher is known as a file
    ours, theirs = student.network().state_dict(), trained["cd"].network().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert made.ensure(made.need(DDIM, 4, 0)) == trained["edm"]


def test_a_given_stage_of_pd_serves_its_own_stage_alone(trained, tmp_path):
    two = next(trained["pd"].path.parent.glob("*-pd-2-*"))
    made = given(tmp_path, checkpoints.load(two))
    assert made.find(made.need(PD, 2, 0)).path == two
    assert made.find(made.need(PD, 4, 0)) is None
    titles = []
    made = given(
        tmp_path, checkpoints.load(two), begin=lambda title: titles.append(title) or (lambda _: None)
    )
    made.ensure(made.need(PD, 1, 0))
    assert titles == ["PD 1 on Digits, seed 0"]


def test_a_given_checkpoint_that_nothing_uses_is_refused(trained, tmp_path):
    made = given(tmp_path, trained["cd"])
    made.check_given([made.need(CT, 1, 0), made.need(CD, 1, 0)])
    with pytest.raises(UsageError, match="no method asked for uses a network of 'cd'"):
        made.check_given([made.need(CT, 1, 0), made.need(DDIM, 4, 0)])
    teacher = given(tmp_path, trained["edm"])
    teacher.check_given([teacher.need(PD, 1, 0)])  # four stages up


def test_the_teachers_network_is_the_students(trained, tmp_path):
    """A teacher of 16 channels has a student of 16, whatever the recipe's network is."""
    made = given(tmp_path, trained["edm"], extra=["network.width=24"])
    assert made.ensure(made.need(CD, 1, 0)).header.network["width"] == 16


def test_a_checkpoint_of_other_images_is_refused(trained, tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((20, 16, 16, 3), np.uint8))
    made = given(tmp_path, trained["cd"], dataset="images", data=tmp_path / "a.npz")
    with pytest.raises(UsageError, match=r"makes images of shape \(1, 8, 8\), .* has \(3, 16, 16\)"):
        made.need(CD, 1, 0) and made.identity(made.need(CD, 1, 0))


def test_a_teacher_of_another_preconditioning_is_refused(trained, tmp_path):
    made = given(tmp_path, trained["edm"], extra=["noise.sigma_data=0.7"])
    with pytest.raises(UsageError, match=r"sigma_data 0.5.*0.7"):
        made.ensure(made.need(CD, 1, 0))
    assert not (tmp_path / "checkpoints").exists()


def test_a_shipped_checkpoint_is_found_by_its_key(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(workshop, "SHIPPED", trained["cd"].path.parent)
    made = shop(tmp_path, begin=lambda title: pytest.fail(f"trains {title}"))
    assert made.ensure(made.need(CD, 1, 0)) == trained["cd"]
    assert made.find(made.need(CD, 1, 1)) is None


def test_a_damaged_checkpoint_is_not_used_nor_overwritten(trained, tmp_path):
    made = shop(tmp_path)
    need = made.need(CT, 1, 0)
    path = made.path(need)
    path.parent.mkdir(parents=True)
    path.write_bytes(trained["ct"].path.read_bytes()[:-50])
    with pytest.raises(WorkError, match="is damaged") as caught:
        made.ensure(need)
    assert str(path) in str(caught.value)


# --- what a user writes wrong ----------------------------------------------------------------------


def test_settings_of_a_method_need_a_name(tmp_path):
    with pytest.raises(UsageError, match=r"cd.key=value"):
        session.open_workshop(session.Options(settings=["cd=3"], out=tmp_path, device="cpu"))


def test_unknown_settings_are_refused_when_the_workshop_opens(tmp_path):
    with pytest.raises(UsageError, match="unknown setting of common 'smaples': did you mean 'samples'"):
        shop(tmp_path, "smaples=3")


def test_dropout_is_of_each_training_its_own(tmp_path):
    small = [
        "network={kind='unet', channels=8, multipliers=[1], blocks=1}",
        "edm.fit.steps=1",
        "cd.fit.steps=1",
    ]
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((20, 8, 8, 1), np.uint8))

    def opened(*extra: str):
        return session.open_workshop(
            session.Options(
                "images", tmp_path / "a.npz", settings=[*small, *extra], out=tmp_path, device="cpu"
            )
        )

    made = opened("edm.dropout=0.25")
    student = made.ensure(made.need(CD, 1, 0))
    assert "dropout" not in student.header.network
    assert made.ensure(made.need(EDM, 1, 0)).header.network["dropout"] == 0.25
    with pytest.raises(UsageError, match=r"edm.dropout"):
        opened("network.dropout=0.25")


def test_diverged_training_is_one_clear_error_and_no_checkpoint(tmp_path):
    made = shop(tmp_path, "ct.fit.learning_rate=1e30", "ct.fit.optimizer=adam")
    with pytest.raises(WorkError, match="training diverged"):
        made.ensure(made.need(CT, 1, 0))
    assert not list(tmp_path.rglob("*.safetensors"))
