"""The origin of a run: commit and machine."""

import platform
import subprocess
from pathlib import Path

import torch


def commit() -> str | None:
    """Return the commit of this code's checkout, with `-dirty` if files differ; None outside a checkout."""
    package = Path(__file__).resolve().parent.parent
    if not (package.parent / ".git").exists():
        return None
    # `git describe --dirty` would lock the index, disturb the user's own git, and leave the lock behind if it died.
    git = ["git", "--no-optional-locks", "-C", str(package.parent)]
    found = []
    try:
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
            done = subprocess.run([*git, *words], capture_output=True, encoding="utf-8", timeout=10, check=True)
            found.append(done.stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None
    head, changes = found
    if changes:
        head += "-dirty"
    return head


def device_name(device: torch.device) -> str:
    """Return the product name of a device, such as `NVIDIA H200` or `AMD EPYC 9654 96-Core Processor`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
