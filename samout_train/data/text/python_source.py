"""The Python files of the interpreter's standard library: 10 MB or more of real text on every machine.

Tests are left out, since only some systems ship them. The text differs between Python versions, so the record lists
the files and their digests.
"""

import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from samout_train.config import validated
from samout_train.data.source import source_function
from samout_train.data.text.base import TextSource
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.files import Survey, in_order, survey

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@validated
@dataclass(kw_only=True)
class PythonSource(TextSource):
    """The standard library: files in the order of their names, each after `<|sos|>`."""

    # The user cannot remove copies from the standard library; they are a few lines long.
    looks_for_copies: ClassVar[bool] = False

    def look_at(self) -> Survey:
        """Find the files and compute their digests.

        Raises:
            ValueError: if this interpreter has no standard library in files.
        """
        return _survey(self.line_ends)


python_source = source_function(PythonSource)


@cache
def _survey(line_ends: LineEnds) -> Survey:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in in_order(root, root.rglob("*.py")):
        if not LEFT_OUT.intersection(path.relative_to(root).parts) and _is_utf8(path):
            files.append(path)
    if not files:
        raise ValueError(
            f"path: {root} has no Python files: this interpreter's standard library is not in files, use data=text"
        )
    return survey(root, files, TextReader(sos=True, line_ends=line_ends))


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
