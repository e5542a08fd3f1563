"""Read WikiText-103 and TinyStories: corpora that are distributed as one or several files for each split."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from samout_train.config import validated
from samout_train.data.source import source_function
from samout_train.data.text.compressed import members_of
from samout_train.data.text.files import Survey, survey
from samout_train.data.text.split_reader import SplitReader
from samout_train.data.text.standard import Figure, Published, StandardCorpus
from samout_train.runtime import home_path

SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
PACKED = r"(\.gz|\.bz2|\.zst)?"
PARQUET = r"(?P<split>train|validation|test)-\d+-of-\d+\.parquet"


@dataclass(kw_only=True)
class SplitFiles(StandardCorpus):
    """Read a corpus whose splits are separate files.

    Args:
        path: The folder or zip archive with the files; its subfolders are searched.
    """

    patterns: ClassVar[Sequence[str]]  # a pattern of file names, with their split, per form of the corpus
    example: ClassVar[str]
    stories: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Published]]

    def surveys(self) -> Mapping[str, Survey]:
        """Return the available splits.

        Raises:
            ValueError: if the files are missing, or belong to several forms of the corpus.
        """
        path = home_path(self.path)
        if not self.path or not path.exists():
            raise ValueError(f"path={self.path}: is not there: give the folder or archive with {self.example}")
        names = self._names(path)
        forms = []
        for pattern in self.patterns:
            form: dict[str, list[str]] = {}
            for name in names:
                if match := re.fullmatch(pattern, name.rpartition("/")[2]):
                    form.setdefault(SPLITS[match["split"]], []).append(name)
            if "train" in form and len(form) > 1:
                forms.append(form)
        if len(forms) != 1:
            what = "has none of the files of" if not forms else "has several forms of"
            raise ValueError(f"path={self.path}: {what} {self.title}: give the folder or archive with {self.example}")
        found: dict[str, Survey] = {}
        for split in ("train", "validation", "test"):
            if split in forms[0]:
                found[split] = self._survey(path, forms[0][split])
        return found

    def difference(self, split: str, looked_at: Survey) -> str | None:
        """Return the known differences of a split from the published one."""
        return self.published_of(looked_at).get(split, Published()).difference(looked_at.count())

    def published_of(self, looked_at: Survey) -> Mapping[str, Published]:
        """Return the published sizes of the form of the corpus to which these files belong."""
        return self.published

    def _names(self, path: Path) -> list[str]:
        """Return the names of the files below a folder, or in an archive."""
        if path.is_file():
            return members_of(path)
        return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())

    def _survey(self, path: Path, names: Sequence[str]) -> Survey:
        if path.is_file():
            reader = SplitReader(member=names[0], stories=self.stories, line_ends=self.line_ends)
            return survey(path.parent, [path], reader)
        reader = SplitReader(stories=self.stories, line_ends=self.line_ends)
        return survey(path, [path / name for name in names], reader)


@validated
@dataclass(kw_only=True)
class WikiText103(SplitFiles):
    """WikiText-103, measured by perplexity per word; words and line ends of the word-level form are counted.

    Source: Merity et al., Pointer Sentinel Mixture Models (arXiv 1609.07843), table 1. The raw form has other words;
    as usual, its perplexity is also per word of the word-level form.
    """

    title: ClassVar[str] = "WikiText-103"
    figure: ClassVar[Figure] = "word_perplexity"
    patterns: ClassVar[Sequence[str]] = (
        r"wiki\.(?P<split>train|valid|test)\.tokens" + PACKED,
        r"wiki\.(?P<split>train|valid|test)\.raw" + PACKED,
        PARQUET,
    )
    example: ClassVar[str] = (
        "wiki.train.tokens and wiki.valid.tokens, or wiki.train.raw, or train-00000-of-00002.parquet"
    )
    published: ClassVar[Mapping[str, Published]] = {
        "train": Published(words=103_227_021, lines=1_801_350),
        "validation": Published(words=217_646, lines=3_760),
        "test": Published(words=245_569, lines=4_358),
    }

    def published_of(self, looked_at: Survey) -> Mapping[str, Published]:
        """Return words and lines of the word-level form; for the raw form, only its lines, which are equally many."""
        counts = looked_at.count()
        for split, known in self.published.items():
            if counts.lines == known.lines and counts.words + counts.lines != known.words:
                return {split: Published(lines=known.lines)}
        return self.published

    def words(self, looked_at: Survey) -> int | None:
        """Return the published words of the split with as many lines; for any other text, its own words."""
        counts = looked_at.count()
        for known in self.published.values():
            if counts.lines == known.lines:
                return known.words
        return counts.words + counts.lines


@validated
@dataclass(kw_only=True)
class TinyStories(SplitFiles):
    """TinyStories, each story after `<|sos|>`. No digest is published; the table has 2,119,719 and 21,990 stories.

    Source: Eldan and Li (arXiv 2305.07759). Papers report losses of their own tokens, so only bits per byte can be
    compared.
    """

    title: ClassVar[str] = "TinyStories"
    patterns: ClassVar[Sequence[str]] = (
        r"TinyStories-(?P<split>train|valid)\.txt" + PACKED,
        r"TinyStoriesV2-GPT4-(?P<split>train|valid)\.txt" + PACKED,
        PARQUET,
    )
    example: ClassVar[str] = (
        "TinyStories-train.txt and TinyStories-valid.txt, or TinyStoriesV2-GPT4-..., or train-00000-of-00004.parquet"
    )
    stories: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Published]] = {
        "train": Published(documents=2_119_719),
        "validation": Published(documents=21_990),
    }

    def published_of(self, looked_at: Survey) -> Mapping[str, Published]:
        """Return the number of stories in the tables; for the text files, none is published."""
        if looked_at.files[0].suffix != ".parquet":
            return {}
        return self.published


wikitext103 = source_function(WikiText103)
tinystories = source_function(TinyStories)
