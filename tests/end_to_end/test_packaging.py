"""The wheel and the sdist, used from another folder: they bring their own conf and need nothing of the checkout."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.nightly


def run(folder: Path, *words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One built from the checkout, one from the unpacked sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d"]
    run(ROOT, *build, folder / "checkout", "-t", "wheel")
    run(ROOT, *build, folder / "sdist", "-t", "sdist")
    with tarfile.open(next((folder / "sdist").glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    for name in ("Makefile", "constraints.txt", "LICENSE", "README.md", "conf/config.yaml", "tests/conftest.py"):
        assert (unpacked / name).is_file(), name
    run(unpacked, *build, folder / "from_sdist", "-t", "wheel")
    return {name: next((folder / name).glob("*.whl")) for name in ("checkout", "from_sdist")}


@pytest.mark.parametrize("origin", ["checkout", "from_sdist"])
def test_an_installed_wheel_trains_from_another_folder_with_its_own_conf(
    tmp_path: Path, wheels: dict[str, Path], origin: str
) -> None:
    site = tmp_path / "site"
    run(tmp_path, sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheels[origin])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = "from samout_train.config.compose import CONF; print(CONF)"
    conf = run(elsewhere, sys.executable, "-c", where, PYTHONPATH=str(site)).strip()
    assert Path(conf) == site / "samout_train" / "conf"
    command = site / "bin" / "samout-train"
    assert "python_source" in run(elsewhere, command, "--help", PYTHONPATH=str(site))
    sizes = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu", "data.num_sequences=8"]
    words = ["data=random", *sizes, "data.batch_size=8", "trainer=debug", "run_dir=run"]
    run(elsewhere, command, *words, PYTHONPATH=str(site))
    assert json.loads((elsewhere / "run" / "summary.json").read_text())["steps"] == 2
    run(elsewhere, command, "compare", "runs=run", "run_dir=page", PYTHONPATH=str(site))
    assert "1 run, sizes as configured" in (elsewhere / "page" / "comparison.html").read_text("utf-8")


def test_the_wheel_holds_the_package_and_its_conf_and_nothing_else(wheels: dict[str, Path]) -> None:
    listing = run(ROOT, sys.executable, "-m", "zipfile", "-l", wheels["checkout"]).splitlines()[1:]
    names = {line.split()[0] for line in listing}
    here = ROOT / "samout_train"
    files = [
        *here.rglob("*.py"),
        *here.rglob("*.pyi"),
        *(here / "experiments" / "curves").iterdir(),
        *here.rglob("*.html"),
    ]
    package = {str(path.relative_to(ROOT)) for path in files}
    conf = {f"samout_train/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in names if ".dist-info/" not in name} == package | conf
