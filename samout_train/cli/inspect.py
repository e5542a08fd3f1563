"""`python -m samout_train inspect path=PATH`: what lies there, whether it is whole, and what it needs."""

import sys

from samout_train.cli.request import answered, settings_of


def keys(*, path: str) -> None:
    """The keys of inspect.yaml; only its signature is used."""


def main(words: list[str]) -> int:
    """Inspects.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 whole, 1 something in it is damaged, 2 it is nothing of ours, or the request was wrong.
    """
    return answered(words, "inspect", keys, _inspect)


def _inspect(words: list[str]) -> int:
    from samout_train.checkpoint import inspect_path

    path = settings_of(words, "inspect", keys).config["path"]
    found = inspect_path(path)
    if not found.known:
        print(found.what, file=sys.stderr)
        return 2
    width = max(len(name) for name, _ in found.rows)
    print(f"{path}: {found.what}")
    for name, value in found.rows:
        print(f"  {name:<{width}}  {value}")
    return int(found.damaged)
