"""The benchmark of prediction, small: it runs, its ways agree, and its report has what the others' have."""

import json
import sys

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

pytest.importorskip("rasterio", reason="needs rasterio: pip install 'cssr[large]'")


@pytest.mark.slow
@pytest.mark.parametrize("photographs", ["1", "2"])
def test_it_runs(tmp_path, capsys, photographs):
    from inference import main

    words = ["--quick", "--photographs", photographs, "--threads", "1", "--batch", "2", "--rounds", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json", str(tmp_path / "report.json")])
    assert ended.value.code == 0 and f"prediction of {photographs} x 120 x 120 pixels" in capsys.readouterr().out
    (line,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert line["difference"] <= line["tolerance"] and line["ratio"] > 0
    assert line["bound"]["share"] == pytest.approx(line["bound"]["rate"] / line["ours"])
