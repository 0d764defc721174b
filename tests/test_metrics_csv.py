"""Reading a metrics.csv that a run wrote, was killed in, or is still writing."""

from __future__ import annotations

import ast

import pytest

from harness.files import EVERYTHING, ROOT
from rlif_lightning.running.metrics_csv import MetricsTable, read_logged


def test_what_the_logger_writes_is_read(tmp_path):
    """Names that csv quotes, and columns that come later."""
    table = MetricsTable(tmp_path, name="", version="")
    table.log_metrics({'a, "b"\nc\u2028d\x0b': 0.1}, step=0)
    table.save()
    table.log_metrics({"e": 1e-300}, step=1)
    table.save()
    logged = read_logged(tmp_path / "metrics.csv")
    assert not logged.torn
    assert set(logged.columns) == {"step", 'a, "b"\nc\u2028d\x0b', "e"}
    assert logged.rows == [
        {"step": "0", 'a, "b"\nc\u2028d\x0b': "0.1"},
        {"step": "1", "e": "1e-300"},
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("torn", ["2", "2,0.3", '2,"0', "2,0.34,5"])
def test_a_torn_line_is_left_out(tmp_path, end, torn):
    """Also one that has all its cells: its last number may go on."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(f"step,loss,{end}0,0.5,{end}1,,\0{end}{torn}".encode())
    logged = read_logged(path)
    assert logged.torn
    assert logged.rows == [{"step": "0", "loss": "0.5"}, {"step": "1"}]
    path.write_bytes(path.read_bytes() + end.encode())
    assert not read_logged(path).torn


@pytest.mark.parametrize(
    ("text", "columns"), [("", []), ("step,loss\n", ["step", "loss"]), ("step,lo", [])]
)
def test_a_file_without_rows(tmp_path, text, columns):
    (tmp_path / "metrics.csv").write_text(text)
    logged = read_logged(tmp_path / "metrics.csv")
    assert (logged.columns, logged.rows) == (columns, [])


def test_tables_are_read_in_one_place():
    """Problems from a user's CSV file are another format; their reader counts lines for its
    errors.
    """
    reads = [
        str(path.relative_to(ROOT))
        for path in EVERYTHING
        if "csv" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr in ("DictReader", "reader", "read_csv")
        and ast.unparse(node) in ("csv.DictReader", "csv.reader", "pd.read_csv")
    ]
    metrics = "rlif_lightning/running/metrics_csv.py"
    assert sorted(reads) == [
        "benchmarks/results.py",  # result files of the docs
        "benchmarks/study_inputs.py",  # how good a script's checkpoints are
        "rlif_lightning/data/local_files.py",
        metrics,
        metrics,
    ]  # it also adds columns to one
