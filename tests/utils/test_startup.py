"""What a command need not import it does not: seconds vary, the modules imported do not."""

import gc
import subprocess
import sys

import pytest
from paths import ROOT

from cssr.utils.cli import quick_imports

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "deepspeed",
    "transformers",
    "kornia",
    "matplotlib",
    "scipy",
    "cv2",
)
# A module's main part runs as the interpreter runs it; whatever ends it, what was imported is printed.
PROGRAM = """
import atexit, runpy, sys
atexit.register(lambda: print(*(m for m in {heavy} if m in sys.modules), file=sys.stderr))
sys.argv = {arguments}
sys.path.insert(0, {folder!r})
runpy.run_path({path!r}, run_name="__main__")
"""


def heavy_modules(code: str) -> tuple[str, set[str]]:
    """What a program prints, and what it imported of HEAVY."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, set(done.stderr.split())


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, cssr; print(*(m for m in {HEAVY} if m in sys.modules), file=sys.stderr)"
    assert heavy_modules(code)[1] == set()


@pytest.mark.parametrize("script, allowed, said", [
    ("cssr/train.py", set(), "batch_size: 6"),
    ("cssr/evaluate.py", set(), "--distances"),
    ("cssr/predict.py", set(), "--mm-per-pixel"),
    ("cssr/compare.py", set(), "--pairs"),
    ("cssr/report/__main__.py", set(), "--reference"),
    ("cssr/demo/__main__.py", set(), "--max-megabytes"),
    ("cssr/deploy.py", set(), "--tolerance"),
    ("cssr/hub.py", set(), "pull"),
    ("cssr/convert.py", set(), "--recipe"),
    ("launch/evaluate.py", set(), "--benchmarks"),
    ("launch/sweep.py", set(), "KEY=V1,V2,..."),
    ("shards/make_benchmark.py", set(), "--degradation"),
    ("shards/make_shards.py", {"cv2"}, "SOURCE"),
    ("shards/doctor.py", {"cv2"}, "SOURCE"),
    ("shards/show.py", {"cv2"}, "--out"),
])  # fmt: skip
def test_help_needs_none_of_them(script, allowed, said):
    path = ROOT / script
    code = PROGRAM.format(heavy=HEAVY, arguments=[str(path), "--help"], folder=str(path.parent), path=str(path))
    text, found = heavy_modules(code)
    assert said in text and found <= allowed


@pytest.mark.slow
def test_a_prediction_that_measures_nothing_needs_no_scipy():
    code = "import sys, cssr.inference.run; print(*({'scipy'} & {*sys.modules}), file=sys.stderr)"
    assert heavy_modules(code)[1] == set()


WITHOUT_COMPILER = """
import sys
from cssr.utils.cli import quick_imports
with quick_imports(compiler=False):
    import cssr.inference.run, cssr.evaluation.run
print(*({"timm", "torch._dynamo"} & {*sys.modules}), file=sys.stderr)
import timm, torch, torchvision
assert timm.create_model("resnet10t").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert torch.compiler.disable(len)([1]) == 1
torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0, 2, 2]])], 2)
"""


@pytest.mark.slow
def test_predictions_and_evaluations_need_no_compiler():
    """It takes a third of their start; whoever asks for it afterwards has the true one."""
    assert heavy_modules(WITHOUT_COMPILER)[1] == {"timm"}


def test_garbage_is_collected_again_after_imports():
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        import no_such_module  # noqa: F401
    assert gc.isenabled()


def test_the_benchmark_starts_programs_that_are_there(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from startup import PROGRAMS

    assert [program for program in PROGRAMS if not (ROOT / program).is_file()] == []
