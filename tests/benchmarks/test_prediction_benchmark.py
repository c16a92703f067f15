"""The benchmark of prediction, small: it runs, its ways agree, and its report has what the others' have."""

import json
import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

pytest.importorskip("rasterio", reason="needs rasterio: pip install 'cssr[large]'")


@pytest.mark.parametrize("photographs", ["1", "2"])
def test_it_runs(tmp_path, capsys, photographs):
    from inference import main

    main(
        [
            "--quick",
            "--photographs",
            photographs,
            "--threads",
            "1",
            "--batch",
            "2",
            "--json",
            str(tmp_path / "found.json"),
        ]
    )
    told = capsys.readouterr().out
    assert all(f"| {way} |" in told for way in ("bare", "plain", "ours")) and "Photograph of 120 x 120" in told
    found = json.loads((tmp_path / "found.json").read_text())
    (line,) = found["results"]
    assert line["difference"] <= line["tolerance"] and line["ratio"] > 0
    assert line["bound"]["share"] == pytest.approx(line["bound"]["rate"] / line["ours"])
