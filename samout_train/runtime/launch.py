"""What torchrun, or whatever starts several processes of one run, says of this process: read from the environment.

torch is not imported here unless a launcher is there.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

from samout_train.runtime.shell import text_setting

SAID = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
RUN_DIR, HERE, GROUP = (f"samout_train/{name}" for name in ("run_dir", "here", "group"))
SECONDS_BETWEEN_LOOKS = 0.02
# Hydra would make a run directory and a log for each process.
WITHOUT_DIRECTORY = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


@dataclass(frozen=True)
class Launch:
    """One of the processes of a run.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        local_rank: Its number on its machine.
        keeps_store: Whether the launcher keeps a store that outlives its processes, as torchrun does.
    """

    rank: int
    count: int
    local_rank: int
    keeps_store: bool

    @classmethod
    def of_environment(cls) -> "Launch | None":
        """Return this process; None where it was started by itself."""
        if not all(name in os.environ for name in SAID):
            return None
        rank, count, local_rank = (int(os.environ[name]) for name in SAID[:3])
        return cls(rank, count, local_rank, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")

    @property
    def is_first(self) -> bool:
        """Return whether it is the one that writes."""
        return self.rank == 0

    def words(self, words: Sequence[str]) -> list[str]:
        """Return the command line: where processes before these ones had begun the run, it goes on with that run."""
        run_dir = self._begun()
        if run_dir is None:
            return list(words)
        kept = [word for word in words if word.partition("=")[0].lstrip("+") not in ("run_dir", "resume")]
        return [*kept, text_setting("run_dir", run_dir), "resume=auto"]

    def note(self, run_dir: str) -> None:
        """Tell the processes that are started after these ones which run they go on with."""
        if self.keeps_store:
            _store().set(RUN_DIR, run_dir)

    def store(self, timeout: timedelta) -> Any:
        """Return where the processes of this start find each other; None where torch makes such a place.

        The launcher's store still has what processes before these ones wrote, such as where they listened. So each
        start has a prefix of its own, a name that the first process makes and gives to those that it finds here.
        """
        if not self.keeps_store:
            return None
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        store = _store()
        store.set_timeout(timeout)
        return PrefixStore(self._group(store), store)

    def _group(self, store: Any) -> str:
        own_name = uuid4().hex
        if not self.is_first:
            store.set(f"{HERE}/{self.rank}", own_name)
            group: str = store.get(f"{GROUP}/{own_name}").decode()
            store.set(f"{HERE}/{group}/{self.rank}", "")
            return group
        others = set(range(1, self.count))
        while others := {rank for rank in others if not store.check([f"{HERE}/{own_name}/{rank}"])}:
            # What is read may be the name of a process of an earlier start: it is read again until this one answers.
            for rank in others:
                if store.check([f"{HERE}/{rank}"]):
                    store.set(f"{GROUP}/{store.get(f'{HERE}/{rank}').decode()}", own_name)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return own_name

    def _begun(self) -> str | None:
        if not self.keeps_store:
            return None
        store = _store()
        return store.get(RUN_DIR).decode() if store.check([RUN_DIR]) else None


def _store() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
