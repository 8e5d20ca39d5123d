import math

from report_factory import record

from cmbench.records import Metric
from cmbench.report.frame import FIXED, frame


def test_one_row_a_record_sorted_with_missing_metrics_as_nan() -> None:
    rows = [
        record("pd", 2, seed=1, metrics={"fid": 3.0}),
        record("cd", 2, seed=1, metrics={"fid": Metric.missing("no weights"), "is": 9.0}),
        record("cd", 1, seed=0, metrics={"fid": Metric(2.0, std=0.1), "is": 8.0}),
    ]
    made = frame(rows)
    assert list(made.columns[: len(FIXED)]) == list(FIXED)
    assert made[["method", "nfe", "seed"]].values.tolist() == [["cd", 1, 0], ["cd", 2, 1], ["pd", 2, 1]]
    assert made["fid"].tolist()[::2] == [2.0, 3.0] and math.isnan(made["fid"][1])
    assert made["fid_std"][0] == 0.1 and "is_std" not in made
    assert made["key"].tolist() == [rows[2].key, rows[1].key, rows[0].key]


def test_no_records_make_an_empty_table_with_its_columns() -> None:
    assert frame([]).empty and set(FIXED) <= set(frame([]).columns)
