"""Files that would run something, given to everything that reads a file."""

import hashlib
import io
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from samout_train import load_published, load_vocabulary, train as train_in_process
from samout_train.checkpoint import write_manifest
from samout_train.cli import export, generate, inspect, train, verify
from tests.faults.answers import refused, told
from tests.faults.row import Case

CHECKPOINT = "step_00000002.pt"
QUICK = ("trainer=debug", "kernels=reference", "~callbacks.tensorboard", "data.num_sequences=8", "data.batch_size=8")


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that would make a file, each in another way."""
    touch = f"touch {marker}"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    found = {f"os.system, protocol {number}": pickle.dumps(Calls(os.system, touch), number) for number in range(6)}
    objects = {
        "eval": Calls(eval, python),
        "exec": Calls(exec, python),
        "a process": Calls(subprocess.Popen, ["touch", str(marker)]),
        "a folder": Calls(os.mkdir, str(marker)),
        "deep in a list": [[[Calls(os.system, touch)]]],
        "in a state": {"format": 3, "step": 2, "model": {"embedding.weight": Calls(os.system, touch)}},
        "as a key": {Calls(os.system, touch): 1},
        "among tensors": {"em.weight": torch.zeros(2), "alpha": Calls(os.system, touch)},
        "as a vocabulary": {"voc": Calls(os.system, touch), "voc0": {}},
    }
    found |= {name: pickle.dumps(value, 2) for name, value in objects.items() if name != "among tensors"}
    found["INST"] = f"(S'{touch}'\nios\nsystem\n.".encode()
    found["OBJ"] = b"(cos\nsystem\n" + f"S'{touch}'\no.".encode()
    found["GLOBAL"] = b"cos\nsystem\n" + f"(S'{touch}'\ntR.".encode()
    found["by another name"] = b"cposix\nsystem\n" + f"(S'{touch}'\ntR.".encode()
    found["an attribute of what is allowed"] = b"ctorch\nos.system\n" + f"(S'{touch}'\ntR.".encode()
    found["BUILD"] = b"ctorch._utils\n_rebuild_tensor_v2\n(S'__call__'\ncos\nsystem\ndb."
    return found


def as_saved(payload: bytes) -> bytes:
    """A file as `torch.save` writes it, with another pickle in it."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, payload if name.endswith("data.pkl") else old.read(name))
    return changed.getvalue()


def hostile_run(run: Path, content: bytes) -> None:
    """Puts a file in the place of a run's newest checkpoint, with a manifest that agrees."""
    path = run / "checkpoints" / CHECKPOINT
    path.write_bytes(content)
    write_manifest(path, {"step": 2, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})


def hostile_files(case: Case) -> str:
    """Gives pickles that would run something to everything that reads a file."""
    run, marker, words = case.folder / "run", case.folder / "executed", [*case.run, *QUICK]
    train_in_process([*words, f"run_dir={run}"])
    (case.folder / "text.txt").write_text("text " * 400, "utf-8")
    text = ["data=text", "data.path=text.txt", "data.seq_len=8", "data.vocabulary_path=evil.pkl"]
    evil = case.folder / "evil"
    doors: dict[str, Callable[[], tuple[int, str]]] = {
        "generate run=": lambda: told(generate.generate, ["run=run", "prompt=a"], case.folder),
        "verify run=": lambda: told(verify.verify, [f"run=run/checkpoints/{CHECKPOINT}"], case.folder),
        "export run=": lambda: told(export.export, ["run=run", "format=published"], case.folder),
        "inspect a run": lambda: told(inspect.inspect, ["path=run"], case.folder),
        "inspect a checkpoint": lambda: told(inspect.inspect, [f"path=run/checkpoints/{CHECKPOINT}"], case.folder),
        "inspect a .pth": lambda: told(inspect.inspect, ["path=evil.pth"], case.folder),
        "inspect a vocabulary": lambda: told(inspect.inspect, ["path=evil.pkl"], case.folder),
        "data.vocabulary_path=": lambda: told(train.train, text, case.folder),
        "resume=": lambda: (1, refused(lambda: train_in_process([*words, f"resume={run}", f"run_dir={run}2"]))),
        "resume=auto": lambda: (1, refused(lambda: train_in_process([*words, f"run_dir={run}", "resume=auto"]))),
        "load_vocabulary of a run": lambda: (1, refused(lambda: load_vocabulary(run))),
        "load_vocabulary": lambda: (1, refused(lambda: load_vocabulary(evil.with_suffix(".pkl")))),
        "load_published": lambda: (1, refused(lambda: load_published(evil.with_suffix(".pth")))),
    }
    pairs = [(name, door) for name in payloads(marker) for door in doors]
    random.Random(case.seed).shuffle(pairs)
    tried = pairs[: case.count]
    for name, door in tried:
        payload = payloads(marker)[name]
        hostile_run(run, as_saved(payload))
        evil.with_suffix(".pth").write_bytes(as_saved(payload))
        evil.with_suffix(".pkl").write_bytes(payload)
        code, words_of_it = doors[door]()
        assert not marker.exists(), f"{name}, given to {door}, was executed"
        assert code in (1, 2) and "Traceback" not in words_of_it, f"{name}, {door}: {words_of_it}"
        clear = ("code in a file is never run", "would run code", "no pickle of lists, dictionaries, texts")
        is_clear = any(reason in words_of_it for reason in clear)
        assert is_clear and len(words_of_it.splitlines()) <= 12, f"{name}, {door}: {words_of_it}"
    return f"0 of {len(tried)} executed"
