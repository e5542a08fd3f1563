"""The Python files of the running interpreter's standard library: 10 MB and more of real text on every machine.

Tests are left out: some systems ship them and some do not. What is read differs between Python versions, so the
files and their digest are part of the record.
"""

import sysconfig
from pathlib import Path
from typing import Annotated

from samout_train.data.batches import Source
from samout_train.data.text import source_from_files
from samout_train.data.vocabulary import VocabularyName
from samout_train.ranges import Positive, validated

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@validated
def python_source(
    *, vocabulary: VocabularyName, seq_len: Annotated[int, Positive], ignore_index: int, seed: int
) -> Source:
    """A source from the standard library, files in the order of their names, each behind `<|sos|>`; split 90/10.

    Args:
        vocabulary: `characters` or `bytes`.
        seq_len: Targets in a row.
        ignore_index: Targets of this value are not counted.
        seed: Decides where rows are cut in each epoch.

    Raises:
        ValueError: if this interpreter has no standard library in files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(root).parts) and _is_utf8(path)
    )
    if not files:
        raise ValueError(
            f"{root} has no Python files: this interpreter's standard library is not in files, use data=text"
        )
    return source_from_files(root, files, vocabulary=vocabulary, seq_len=seq_len, ignore_index=ignore_index, seed=seed)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
