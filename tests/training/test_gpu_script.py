"""What `make gpu` runs, as far as it goes without a GPU: parts in processes of their own, and a result that resumes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "scripts" / "gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.nightly
def test_parts_are_measured_once_and_a_failed_one_again(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [sys.executable, "-c", "print('3 passed, 1 failed'); raise SystemExit(1)"]
    monkeypatch.setattr(script, "program", lambda name, out: broken)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(tmp_path), "kernels", "tests"])
    script.main()
    first = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert first["parts"]["kernels"]["figures"]["loss and its gradient in place: us"] > 0
    assert first["parts"]["kernels"]["figures"]["norm with residual, 2 x 16 x 32: forward us"] > 0
    assert first["parts"]["tests"]["figures"] == {"passed": 3, "failed": 1}
    assert "exit code 1" in first["parts"]["tests"]["error"]
    table = (tmp_path / "result.md").read_text("utf-8")
    assert "| tests | failed | exit code 1: see tests.log |" in table and "| kernels | gate, 2 x 16 x 32" in table
    capsys.readouterr()
    monkeypatch.setattr(script, "program", lambda name, out: [sys.executable, "-c", "print('4 passed')"])
    script.main()
    second = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert second["parts"]["kernels"] == first["parts"]["kernels"]
    assert second["parts"]["tests"]["figures"] == {"passed": 4} and "error" not in second["parts"]["tests"]
    assert "kernels      has figures of" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_stopped(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "program", lambda name, out: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setitem(script.LIMITS, "resume", 1)
    assert script.measured("resume", tmp_path, small=True)["error"] == "stopped after 1 s"


def test_every_part_has_a_limit_and_all_fit_into_calls_of_ten_minutes(script: ModuleType, tmp_path: Path) -> None:
    assert all(0 < limit <= 600 for limit in script.LIMITS.values())
    for name in script.LIMITS.keys() - script.MEASURED.keys():
        assert script.program(name, tmp_path)[0] == sys.executable


@pytest.mark.nightly
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], capture_output=True, text=True, env=hidden)
    assert done.returncode == 2 and "no CUDA device here" in done.stderr and not list(tmp_path.iterdir())
