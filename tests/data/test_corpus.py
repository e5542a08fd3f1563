"""The corpus of scripts/make_corpus.py: what it takes from a package, each text once, in an order of its own."""

import gzip
import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_corpus.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_corpus", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


LONG = "a text that is long enough to be a sentence of its own"


def test_a_corpus_has_what_packages_document(script: ModuleType, tmp_path: Path) -> None:
    service = {
        "documentation": f"<p>{LONG} &amp; <code>more</code></p><ul><li>a  b</li></ul>",
        "shapes": [{"documentation": "short"}, {"other": LONG, "description": f"{LONG}, which is another one"}],
    }
    module = f'DOCUMENTATION = r"""\n---\nmodule: {LONG}\n  options: some  \n"""\nx = """{LONG}, no documentation"""\n'
    first, second = tmp_path / "a.whl", tmp_path / "b.whl"
    with zipfile.ZipFile(first, "w") as archive:
        archive.writestr("data/service.json.gz", gzip.compress(json.dumps(service).encode()))
        archive.writestr("data/again.json", json.dumps({"description": f"{LONG}, which is another one"}))
    with zipfile.ZipFile(second, "w") as archive:
        archive.writestr("modules/one.py", module)
        archive.writestr("notes.txt", LONG)
    lines = script.corpus([first, second])
    texts = sorted(json.loads(line)["text"] for line in lines)
    assert texts == sorted(
        [f"---\nmodule: {LONG}\n  options: some", f"{LONG}, which is another one", f"{LONG} & more\na b"]
    ), "data/again.json comes first by name, and so keeps the text that both have"
    assert lines == script.corpus([first, second])


def test_other_packages_are_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"has no botocore==.* with the sha256 .*: leave --packages out"):
        script.wheels(tmp_path)
