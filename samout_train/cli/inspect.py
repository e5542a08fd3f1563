"""`python -m samout_train inspect path=PATH`: describe what is there, whether it is intact, and what it needs."""

import sys

from samout_train.cli.verb import verb


@verb
def inspect(*, path: str) -> int:
    """Describes a run, checkpoint, export or vocabulary: what it is, whether it is intact, and what it needs.

    Returns:
        The exit code: 0 intact, 1 something in it is damaged, 2 it is not a file of this program, or the request was
        wrong.
    """
    from samout_train.checkpoint import inspect_path

    found = inspect_path(path)
    if not found.known:
        print(found.what, file=sys.stderr)
        return 2
    width = max(len(name) for name, _ in found.rows)
    print(f"{path}: {found.what}")
    for name, value in found.rows:
        print(f"  {name:<{width}}  {value}")
    return int(found.damaged)
