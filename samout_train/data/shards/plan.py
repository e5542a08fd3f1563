"""The plan of a folder of shards: settings, files and vocabulary, recorded before the first shard is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samout_train.data.shards.index import FORMAT, PLAN, VOCABULARY
from samout_train.data.shards.parts import SourceFile
from samout_train.data.text.documents import LineEnds
from samout_train.data.text.encoding import printable
from samout_train.data.vocabulary.bpe import BytePairs
from samout_train.data.vocabulary.choice import VocabularyChoice
from samout_train.runtime import leftovers, read_json, write_json

LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The shards to be made.

    Args:
        root: What names are relative to.
        paths: The files, in their order.
        out: Where shards go.
        choice: The vocabulary.
        roles: The special token that stands before what a role says, in JSON Lines.
        part_bytes: Of text that become a shard, about.
        vocabulary_bytes: Of text that `bpe` is learned from, at the most.
        line_ends: How those of text are read.
        left_out: What lies beside the files and is not read, in words.
    """

    root: Path
    paths: Sequence[Path]
    out: Path
    choice: VocabularyChoice
    roles: dict[str, str]
    part_bytes: int
    vocabulary_bytes: int
    line_ends: LineEnds
    left_out: str = ""

    @property
    def settings(self) -> dict[str, object]:
        """Return what shards depend on beside the files."""
        settings: dict[str, object] = {"vocabulary": self.choice.key(), "roles": self.roles}
        settings |= {"part_bytes": self.part_bytes, "line_ends": self.line_ends}
        if self.choice.name == BytePairs.name and self.choice.given is None:
            settings["vocabulary_bytes"] = self.vocabulary_bytes
        return settings

    def listing(self, files: Sequence[SourceFile]) -> list[dict[str, object]]:
        """Return name, bytes, time of modification and digest of the edges of each file."""
        listed: list[dict[str, object]] = []
        for file in files:
            name = file.path.relative_to(self.root).as_posix()
            entry = {"name": name, "bytes": file.num_bytes, "modified_ns": file.modified_ns, "edges_sha256": file.edges}
            listed.append(entry)
        return listed

    def read(self, files: Sequence[SourceFile]) -> dict[str, Any] | None:
        """Return the vocabulary of the plan that lies in `out`; None where there is none.

        Raises:
            ValueError: if it is a plan for something else.
        """
        path = self.out / PLAN
        if not path.exists():
            return None
        plan = read_json(path)
        if plan is None or plan.get("format") != FORMAT:
            raise ValueError(f"{path} is damaged, or of another version: delete {self.out}, and start again")
        there, here = {"line_ends": "keep"} | plan["settings"], self.settings  # older plans do not name it
        other = []
        for key in sorted(there | here):
            if there.get(key) != here.get(key):
                other.append(f"{key} was {there.get(key)} and is {here.get(key)}")
        if other:
            words = ", ".join(other)
            raise ValueError(f"out={self.out}: holds shards of other settings ({words:.300}): give another folder")
        if changed := _changed(plan["files"], self.listing(files)):
            raise ValueError(
                f"out={self.out}: its shards were begun with other files ({changed}): give another folder, or delete "
                "that one, and start again"
            )
        state: dict[str, Any] = plan["vocabulary"]
        return state

    def write(self, files: Sequence[SourceFile], vocabulary_state: dict[str, object]) -> None:
        """Write the vocabulary, and then the plan."""
        write_json(self.out / VOCABULARY, vocabulary_state)
        plan = {"format": FORMAT, "settings": self.settings, "files": self.listing(files)}
        write_json(self.out / PLAN, plan | {"vocabulary": vocabulary_state})

    def refuse_strangers(self) -> None:
        """Refuse to write among files of something else.

        Raises:
            ValueError: if `out` is no folder, or has files and no plan.
        """
        if not str(self.out).strip() or (self.out.exists() and not self.out.is_dir()):
            raise ValueError(f"out={self.out}: is no folder: give one that is not there yet")
        if self.out.is_dir() and not (self.out / PLAN).exists():
            known = {LOCK, VOCABULARY, *(path.name for path in leftovers(self.out))}
            strange = {path.name for path in self.out.iterdir()} - known
            if strange:
                raise ValueError(f"out={self.out}: has other files ({min(strange)}): give a folder of its own")


def _changed(before: Sequence[dict[str, object]], now: Sequence[dict[str, object]]) -> str | None:
    """Return the first difference between two lists of files, in words."""
    old = {file["name"]: file for file in before}
    new = {file["name"]: file for file in now}
    for name in [*old, *new]:
        if name not in new:
            return f"{printable(name)} is gone"
        if name not in old:
            return f"{printable(name)} is new"
        if any(old[name].get(key, value) != value for key, value in new[name].items()):  # older plans have no digest
            return f"{printable(name)} was changed"
    return None
