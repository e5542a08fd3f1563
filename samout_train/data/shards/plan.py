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
    """The plan of the shards to make.

    Args:
        root: The folder that file names are relative to.
        paths: The files, in order.
        out: The folder of the shards.
        choice: The vocabulary.
        roles: The special token before a role's messages, by role, in JSON Lines.
        part_bytes: Approximate bytes of text per shard.
        vocabulary_bytes: The most bytes of text to learn `bpe` from.
        line_ends: Treatment of line ends in text.
        close_turns: Whether `<|user|>` follows an agent's last turn in JSON Lines.
        left_out: Description of the skipped files.
    """

    root: Path
    paths: Sequence[Path]
    out: Path
    choice: VocabularyChoice
    roles: dict[str, str]
    part_bytes: int
    vocabulary_bytes: int
    line_ends: LineEnds
    close_turns: bool = False
    left_out: str = ""

    @property
    def settings(self) -> dict[str, object]:
        """Return the settings that the shards depend on."""
        settings: dict[str, object] = {"vocabulary": self.choice.key(), "roles": self.roles}
        settings |= {"part_bytes": self.part_bytes, "line_ends": self.line_ends, "close_turns": self.close_turns}
        if self.choice.name == BytePairs.name and self.choice.given is None:
            settings["vocabulary_bytes"] = self.vocabulary_bytes
        return settings

    def listing(self, files: Sequence[SourceFile]) -> list[dict[str, object]]:
        """Return the name, bytes, time of modification and digest of the edges of each file."""
        listed: list[dict[str, object]] = []
        for file in files:
            name = file.path.relative_to(self.root).as_posix()
            entry = {"name": name, "bytes": file.num_bytes, "modified_ns": file.modified_ns, "edges_sha256": file.edges}
            listed.append(entry)
        return listed

    def read(self, files: Sequence[SourceFile]) -> dict[str, Any] | None:
        """Return the vocabulary state of the plan in `out`, and write it again if missing; None without a plan.

        Raises:
            ValueError: if the plan has other settings or files.
        """
        path = self.out / PLAN
        if not path.exists():
            return None
        plan = read_json(path)
        if plan is None or plan.get("format") != FORMAT:
            raise ValueError(f"{path} is damaged, or of another version: delete {self.out}, and start again")
        there, here = {"line_ends": "keep", "close_turns": False} | plan["settings"], self.settings  # of older plans
        there["roles"] = self.roles | there["roles"]  # roles added since: no conversation had them
        other = []
        for key in sorted(there | here):
            if there.get(key) != here.get(key):
                other.append(f"{key} was {there.get(key)} and is {here.get(key)}")
        if other:
            words = ", ".join(other)
            raise ValueError(f"out={self.out}: holds shards of other settings ({words:.300}): set another folder")
        if not plan.get("cuts_arrow") and any(
            file.table == "Arrow" and file.num_bytes > self.part_bytes for file in files
        ):
            raise ValueError(
                f"out={self.out}: its shards were begun by a version that did not cut Arrow tables: delete it, or set "
                "another folder"
            )
        if changed := _changed(plan["files"], self.listing(files)):
            raise ValueError(
                f"out={self.out}: its shards were begun with other files ({changed}): set another folder, or delete "
                "this one and start again"
            )
        state: dict[str, Any] = plan["vocabulary"]
        if not (self.out / VOCABULARY).exists():
            write_json(self.out / VOCABULARY, state)
        return state

    def write(self, files: Sequence[SourceFile], vocabulary_state: dict[str, object]) -> None:
        """Write the vocabulary, then the plan."""
        write_json(self.out / VOCABULARY, vocabulary_state)
        plan = {"format": FORMAT, "settings": self.settings, "files": self.listing(files), "cuts_arrow": True}
        write_json(self.out / PLAN, plan | {"vocabulary": vocabulary_state})

    def require_own_folder(self) -> None:
        """Raise ValueError if `out` is not a folder, or has other files but no plan."""
        if not str(self.out).strip() or (self.out.exists() and not self.out.is_dir()):
            raise ValueError(f"out={self.out}: is not a folder: set a new one")
        if self.out.is_dir() and not (self.out / PLAN).exists():
            known = {LOCK, VOCABULARY, *(path.name for path in leftovers(self.out))}
            strange = {path.name for path in self.out.iterdir()} - known
            if strange:
                raise ValueError(f"out={self.out}: has other files ({min(strange)}): set a new or empty folder")


def _changed(before: Sequence[dict[str, object]], now: Sequence[dict[str, object]]) -> str | None:
    """Describe the first difference between two lists of files; None if they agree."""
    old = {file["name"]: file for file in before}
    new = {file["name"]: file for file in now}
    for name in [*old, *new]:
        if name not in new:
            return f"{printable(name)} is gone"
        if name not in old:
            return f"{printable(name)} is new"
        if any(old[name].get(key, value) != value for key, value in new[name].items()):  # older plans have no digest
            return f"{printable(name)} has changed"
    return None
