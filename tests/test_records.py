"""Records: schema, keys, the store; and that reading them needs no torch."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmbench import records
from cmbench.errors import WorkError
from cmbench.records import Metric, Record, fingerprint


def record(**changes) -> Record:
    made = Record(
        method="cd",
        label="CD",
        group="Diffusion + Distillation",
        reference="Song et al., 2023",
        dataset="digits",
        nfe=2,
        nfe_counted=2.0,
        seed=0,
        samples=100,
        metrics={
            "fid": Metric(3.5, std=0.1, low=3.3, high=3.7, note="n"),
            "is": Metric.missing("no weights"),
        },
        protocol="digits",
        protocol_fingerprint="0" * 16,
        identity={"method": "cd", "nfe": 2, "nested": {"a": [1, 2.5, None]}},
        checkpoint="ab",
        cost={"images_per_second": 10.0},
        environment={"python": "3"},
        notes=("one", "two"),
    )
    return replace(made, **changes)


def test_round_trip(tmp_path):
    path = records.write(tmp_path, record())
    assert path == tmp_path / "runs" / f"digits-cd-nfe2-seed0-{record().key}.json"
    assert records.read_file(path) == record()
    assert records.read(tmp_path) == [record()]
    assert records.find(tmp_path, record().key) == record()
    assert records.find(tmp_path, "f" * 16) is None


def test_what_is_empty_is_not_written():
    assert record().to_json()["metrics"] == {
        "fid": {"value": 3.5, "std": 0.1, "low": 3.3, "high": 3.7, "note": "n"},
        "is": {"reason": "no weights"},
    }
    assert json.loads(json.dumps(record().to_json(), allow_nan=False))["nfe_counted"] == 2.0


def test_nothing_stored_is_an_empty_list(tmp_path):
    assert records.read(tmp_path / "nowhere") == []
    assert records.find(tmp_path / "nowhere", "0" * 16) is None


def test_key_is_of_the_identity_alone():
    assert record(cost={}, environment={}, metrics={}, notes=()).key == record().key
    assert record(identity={"method": "cd"}).key != record().key
    assert len(record().key) == 16


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=6))
def test_fingerprint_knows_no_order_of_keys(content: dict):
    assert fingerprint(content) == fingerprint(dict(reversed(content.items())))
    assert fingerprint({**content, "\0new": 1}) != fingerprint(content)


def test_fingerprint_is_pinned_and_refuses_what_is_no_json():
    assert fingerprint({"b": [1, 2.5], "a": None}) == "e57f5d37865437a8"
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"x": float("nan")})


def test_writing_again_replaces(tmp_path):
    records.write(tmp_path, record(cost={"a": 1}))
    records.write(tmp_path, record(cost={"a": 2}))
    (stored,) = records.read(tmp_path)
    assert stored.cost == {"a": 2}
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_data_set_with_a_slash_stays_inside(tmp_path):
    path = records.write(tmp_path, record(dataset="../evil"))
    assert path.parent == tmp_path / "runs"
    assert records.find(tmp_path, record().key) == record(dataset="../evil")


def test_figures_that_are_no_numbers_are_not_stored(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        records.write(tmp_path, record(metrics={"fid": Metric(float("nan"))}))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("values", [{"value": None}, {"value": 1.0, "reason": "x"}])
def test_a_metric_has_a_value_or_a_reason(values):
    with pytest.raises(ValueError, match="never both"):
        Metric(**values)


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"{}", b'{"schema": 99}', b'{"schema": 1}',
        b'{"schema": 1, "metrics": []}', b'{"schema": 1, "metrics": {"fid": 3}}',
        b'{"schema": 1, "metrics": {}, "x": 1}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path, damage: bytes):
    path = records.write(tmp_path, record())
    path.write_bytes(damage)
    with pytest.raises(WorkError) as caught:
        records.read(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(WorkError):
        records.find(tmp_path, record().key)


def test_a_record_of_another_schema_says_which(tmp_path):
    path = records.write(tmp_path, record())
    path.write_text(json.dumps({**record().to_json(), "schema": 7}))
    with pytest.raises(WorkError, match="schema 7, this version reads 1"):
        records.read_file(path)


def test_select(tmp_path):
    other = record(dataset="mnist")
    assert records.select([record(), other], "mnist") == [other]


def test_reading_records_imports_no_torch():
    code = (
        "import sys, cmbench.records, cmbench.registry, cmbench.paths;"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
