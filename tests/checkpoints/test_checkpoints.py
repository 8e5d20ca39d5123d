"""Checkpoints: what comes back is what went in, and what is no checkpoint is refused in one line."""

import json
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from cmbench import checkpoints
from cmbench.checkpoints import Header
from cmbench.diffusion.noise import NoiseRange
from cmbench.errors import UsageError, WorkError
from cmbench.networks import build

CONFIG = {"kind": "mlp", "width": 8, "blocks": 1, "embedding": 8}
HEADER = Header(
    method="cd",
    variant="4",
    dataset="toy",
    shape=(1, 2, 3),
    classes=0,
    network=CONFIG,
    noise=NoiseRange(0.01, 50.0, 0.6, 5.0),
    recipe={"fit": {"steps": 3}, "taus": {"2": [0.5]}},
    key="0123456789abcdef",
    seed=4,
    seconds=1.5,
    notes=("a note",),
)


def network(seed: int = 0, config=CONFIG) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = build(config, (1, 2, 3), 0)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


@pytest.fixture
def saved(tmp_path):
    return checkpoints.save(tmp_path / "here" / "a.safetensors", network(), HEADER)


def test_round_trip(saved):
    again = checkpoints.load(saved.path)
    assert again == saved
    assert again.header == HEADER
    assert len(again.sha256) == 64
    loaded = again.network()
    x, c = torch.randn(4, 1, 2, 3), torch.randn(4)
    assert torch.equal(loaded(x, c), network()(x, c))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert [p.name for p in saved.path.parent.iterdir()] == ["a.safetensors"]


def test_hash_is_that_of_the_training_not_of_its_duration(saved, tmp_path):
    def digest(name: str, net=None, **changes) -> str:
        return checkpoints.save(tmp_path / name, net or network(), replace(HEADER, **changes)).sha256

    assert digest("b") == saved.sha256
    assert digest("c", seconds=99.0) == saved.sha256
    assert digest("d", net=network(1)) != saved.sha256
    assert digest("e", noise=NoiseRange()) != saved.sha256
    assert digest("f", seed=5) != saved.sha256


def test_weights_in_half_precision_are_read_as_float32(tmp_path):
    half = {name: t.half() for name, t in network().state_dict().items()}
    save_file(half, tmp_path / "h", metadata={"cmbench": json.dumps(asdict(HEADER))})
    loaded = checkpoints.load(tmp_path / "h").network()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[name].float())


def test_an_interrupted_write_leaves_the_old_checkpoint(saved, monkeypatch):
    import safetensors.torch

    def broken(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(saved.path, network(1), HEADER)
    assert [p.name for p in saved.path.parent.iterdir()] == ["a.safetensors"]
    assert checkpoints.load(saved.path) == saved


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UsageError, match="no checkpoint at") as caught:
            checkpoints.load(path)
        assert str(path) in one_line(caught)


def test_safetensors_of_something_else(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(UsageError, match="is not a cmbench checkpoint") as caught:
        checkpoints.load(tmp_path / "x")
    one_line(caught)
    save_file({"x": torch.zeros(2)}, tmp_path / "x", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="is not a cmbench checkpoint"):
        checkpoints.load(tmp_path / "x")


@pytest.mark.parametrize(
    "metadata",
    ["not json", "[]", "3", "{}", '{"format": 1}', json.dumps({**asdict(HEADER), "extra": 1}),
     json.dumps({**asdict(HEADER), "noise": {"sigma": 1}}), json.dumps({**asdict(HEADER), "shape": None})],
)  # fmt: skip
def test_headers_that_are_none(tmp_path, metadata: str):
    save_file({"x": torch.zeros(2)}, tmp_path / "x", metadata={"cmbench": metadata})
    with pytest.raises(UsageError) as caught:
        checkpoints.load(tmp_path / "x")
    assert str(tmp_path / "x") in one_line(caught)


def test_another_format(tmp_path):
    made = checkpoints.save(tmp_path / "x", network(), HEADER)
    text = json.dumps(asdict(replace(HEADER, format=99)))
    save_file(network().state_dict(), made.path, metadata={"cmbench": text})
    with pytest.raises(UsageError, match="format 99; this version reads 1"):
        checkpoints.load(made.path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1, -100])
def test_truncated_file(saved, keep: int):
    saved.path.write_bytes(saved.path.read_bytes()[:keep])
    with pytest.raises(WorkError, match="is damaged") as caught:
        checkpoints.load(saved.path)
    assert str(saved.path) in one_line(caught)


def test_pickles_are_not_opened(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.write_text, ("executed",))

    torch.save({"x": Evil()}, tmp_path / "x.pt")
    with pytest.raises((UsageError, WorkError)):
        checkpoints.load(tmp_path / "x.pt")
    assert not ran.exists()


def test_header_that_claims_an_impossible_length(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(WorkError, match="is damaged"):
        checkpoints.load(tmp_path / "x")


@pytest.mark.parametrize("other", [{**CONFIG, "width": 16}, {**CONFIG, "blocks": 2}])
def test_weights_that_do_not_fit_the_network_of_the_header(tmp_path, other):
    made = checkpoints.save(tmp_path / "x", network(), replace(HEADER, network=other))
    with pytest.raises(WorkError, match="weights do not fit"):
        made.network()


def test_network_of_an_unknown_kind(tmp_path):
    made = checkpoints.save(tmp_path / "x", network(), replace(HEADER, network={"kind": "mpl"}))
    with pytest.raises(UsageError, match="did you mean 'mlp'"):
        made.network()
