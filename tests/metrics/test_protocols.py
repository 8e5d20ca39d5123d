"""Protocols: what moves a number moves the fingerprint, and nothing else does."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from cmbench.errors import UsageError
from cmbench.metrics import protocols
from cmbench.metrics.protocols import Protocol


@pytest.mark.parametrize("name", protocols.names())
def test_a_protocol_survives_json(name: str) -> None:
    protocol = protocols.get(name)
    again = protocols.from_json(protocol.to_json())
    assert again == protocol
    assert again.fingerprint == protocol.fingerprint
    assert len(protocol.fingerprint) == 16


def test_built_in_protocols_differ_from_one_another() -> None:
    assert len({protocols.get(name).fingerprint for name in protocols.names()}) == len(protocols.names())


def test_protocols_import_no_torch() -> None:
    code = "import sys, cmbench.metrics.protocols as p; p.names(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _changed(protocol: Protocol) -> dict[str, Protocol]:
    first, *rest = protocol.metrics
    extractor, *others = protocol.extractors
    replace = dataclasses.replace
    reference = replace(protocol.references["imagenet64"], sha256="ab")
    return {
        "quantizer": replace(protocol, quantizer="round"),
        "precision": protocol.with_arithmetic("bf16"),
        "compile": protocol.with_arithmetic("float32", compile=True),
        "samples": replace(protocol, samples=10_000),
        "resize": replace(protocol, extractors=(replace(extractor, resize="pil-bicubic"), *others)),
        "weights": replace(protocol, extractors=(replace(extractor, weights="0123"), *others)),
        "layer": replace(protocol, metrics=(replace(first, layer="spatial"), *rest)),
        "setting": replace(
            protocol, metrics=(*protocol.metrics[:-1], replace(protocol.metrics[-1], settings={"k": 5}))
        ),
        "reference": replace(protocol, references={**protocol.references, "imagenet64": reference}),
    }


def test_everything_that_moves_a_number_moves_the_fingerprint() -> None:
    adm = protocols.get("adm")
    changed = {name: protocol.fingerprint for name, protocol in _changed(adm).items()}
    assert len({adm.fingerprint, *changed.values()}) == len(changed) + 1, changed


def test_names_and_titles_do_not_move_the_fingerprint() -> None:
    adm = protocols.get("adm")
    renamed = dataclasses.replace(adm, name="mine", title="Mine", source="me")
    titled = dataclasses.replace(
        renamed,
        metrics=tuple(dataclasses.replace(m, titles={k: k.upper() for k in m.titles}) for m in adm.metrics),
    )
    assert titled.fingerprint == adm.fingerprint


def test_titles_stand_in_the_protocols_order() -> None:
    assert protocols.get("digits").metric_titles["fid"] == "FD-digits"
    assert list(protocols.get("adm").metric_titles) == ["fid", "sfid", "is", "precision", "recall"]


def test_every_known_data_set_has_a_default() -> None:
    assert protocols.default_for("digits").name == "digits"
    assert protocols.default_for("imagenet64").name == "adm"
    assert protocols.default_for("my-images").name == "torch-fidelity"


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'adm'"):
        protocols.get("amd")


def test_a_users_file_makes_a_protocol(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        title = "FID of rounded images, precision with five neighbours"
        quantizer = "round"
        samples = 5000
        [[extractors]]
        name = "inception-v3"
        weights = "6726825d"
        resize = "tf1-bilinear"
        [[metrics]]
        kind = "frechet"
        extractor = "inception-v3"
        layer = "pool3"
        titles = { fid = "FID" }
        [[metrics]]
        kind = "precision-recall"
        extractor = "inception-v3"
        layer = "pool3"
        titles = { precision = "P", recall = "R" }
        settings = { k = 5 }
        [references."*"]
        name = "training set"
        """
    )
    protocol = protocols.from_toml(path)
    assert protocol.name == "mine"
    assert protocol.metrics[1].settings["k"] == 5
    assert protocol.metrics[1].settings["reference_count"] is None


def test_a_users_file_can_start_from_a_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "rounded.toml"
    path.write_text('base = "adm"\nquantizer = "round"\n')
    protocol = protocols.from_toml(path)
    assert protocol == dataclasses.replace(protocols.get("adm"), name="rounded", quantizer="round")


KID = 'kind="kid", extractor="inception-v3", layer="pool3", titles={kid="KID"}'


def metrics(entry: str) -> str:
    return f'base = "adm"\nmetrics = [{{{entry}}}]'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("quantizer = ", "not a readable protocol"),
        ('base = "amd"', "did you mean 'adm'"),
        ('base = "adm"\nquantizer = "floor"', "choose truncate, round"),
        ('base = "adm"\nprecision = "fp8"', "choose float32, tf32, bf16"),
        ('base = "adm"\ncolour = "blue"', "unexpected keyword argument 'colour'"),
        ('base = "adm"\nsamples = 1', "samples cannot be 1"),
        ('base = "adm"\nmetrics = []', "at least one metric"),
        ('quantizer = "round"', "extractors is missing"),
        (
            'base = "adm"\nmetrics = [{kind="frechet", extractor="vgg16", layer="x", titles={fid="F"}}]',
            "inception-v3",
        ),
        (
            'base = "adm"\nmetrics = [{kind="fid", extractor="vgg16", layer="x", titles={fid="F"}}]',
            "unknown kind",
        ),
        (metrics(f"{KID}, settings={{subset=3}}"), "did you mean 'subsets'"),
        (metrics(f"{KID}, settings={{subsets=-3}}"), "subsets of metric 'kid' cannot be -3"),
        (metrics(f"{KID}, settings={{subsets='x'}}"), "subsets of metric 'kid' cannot be 'x'"),
        (
            metrics('kind="inception-score", extractor="inception-v3", layer="x", titles={a="A"}'),
            "either splits",
        ),
    ],
)
def test_a_bad_file_gets_one_clear_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as raised:
        protocols.from_toml(path)
    assert "\n" not in str(raised.value)


def test_a_users_reference_joins_the_fingerprint_by_its_content(tmp_path: Path) -> None:
    adm = protocols.get("adm")
    one, two, same = tmp_path / "one.npz", tmp_path / "two.npz", tmp_path / "same.npz"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    same.write_bytes(b"1")
    assert adm.with_reference(one).fingerprint == adm.with_reference(same).fingerprint
    assert (
        len({adm.fingerprint, adm.with_reference(one).fingerprint, adm.with_reference(two).fingerprint}) == 3
    )
    with pytest.raises(UsageError, match="there is no reference file"):
        adm.with_reference(tmp_path / "absent.npz")
