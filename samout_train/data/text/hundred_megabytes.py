"""Read enwik8 and text8: 100,000,000 bytes of Wikipedia, 90 % for training, 5 % for validation and 5 % for the test.

Source: Mahoney, Large Text Compression Benchmark, "About the Test Data": sizes and MD5. The splits are those of Graves
(arXiv 1308.0850) and everyone who reports bits per character: 90 million, 5 million and 5 million bytes. A split that
would begin within a character begins at the next character, at most three bytes later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from samout_train.config import validated
from samout_train.data.source import source_function
from samout_train.data.text.compressed import ENDINGS
from samout_train.data.text.files import Survey, survey
from samout_train.data.text.split_reader import SplitReader
from samout_train.data.text.standard import StandardCorpus, text_digest
from samout_train.runtime import home_path

NUM_BYTES = 100_000_000
ONLY_ONE = "*"


@dataclass(kw_only=True)
class HundredMegabytes(StandardCorpus):
    """Read one file of 100,000,000 bytes; a shorter one is split in the same proportions.

    Args:
        path: The file, optionally as .zip, .gz, .bz2 or .zst, or its folder.
    """

    md5: ClassVar[str]

    def surveys(self) -> Mapping[str, Survey]:
        """Return the three splits of the file.

        Raises:
            ValueError: if the file is missing.
        """
        path = self._file()
        num_bytes, _ = text_digest(self._survey(path, SplitReader(member=ONLY_ONE)), ONLY_ONE)
        first, second = num_bytes * 90 // 100, num_bytes * 95 // 100
        ends = {"train": (0, first), "validation": (first, second), "test": (second, num_bytes)}
        found = {}
        for split, (start, stop) in ends.items():
            reader = SplitReader(member=ONLY_ONE, first=start, behind=stop, line_ends=self.line_ends)
            found[split] = self._survey(path, reader)
        return found

    def difference(self, split: str, looked_at: Survey) -> str | None:
        """Return how the size or MD5 of the whole file differs from the published file; None if they agree."""
        num_bytes, md5 = text_digest(looked_at, ONLY_ONE)
        if (num_bytes, md5) == (NUM_BYTES, self.md5):
            return None
        return f"the file has {num_bytes:,} bytes, MD5 {md5}; {self.title} has {NUM_BYTES:,}, {self.md5}"

    def _file(self) -> Path:
        path = home_path(self.path)
        if self.path and path.is_dir():
            names = [f"{self.title}{ending}" for ending in ("", ".zip", *ENDINGS)]
            found = [path / name for name in names if (path / name).is_file()]
            if not found:
                raise ValueError(f"path={self.path}: holds none of {', '.join(names)}: give the file")
            return found[0]
        if not self.path or not path.is_file():
            raise ValueError(f"path={self.path}: is not there: give {self.title}, as it is distributed or unpacked")
        return path

    def _survey(self, path: Path, reader: SplitReader) -> Survey:
        return survey(path.parent, [path], reader)


@validated
@dataclass(kw_only=True)
class Enwik8(HundredMegabytes):
    """The first 100,000,000 bytes of the English Wikipedia of 2006, in XML; figures are bits per byte."""

    title: ClassVar[str] = "enwik8"
    md5: ClassVar[str] = "a1fa5ffddb56f4953e226637dabbb36a"


@validated
@dataclass(kw_only=True)
class Text8(HundredMegabytes):
    """The same articles, reduced to 26 letters and the blank; figures are bits per character, here a byte."""

    title: ClassVar[str] = "text8"
    md5: ClassVar[str] = "3bea1919949baf155f99411df5fada7e"


enwik8 = source_function(Enwik8)
text8 = source_function(Text8)
