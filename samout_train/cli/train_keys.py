"""The keys of verbs that train: those of `train`, and some of their own."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from samout_train.config import DeviceName, Seed, Threads

Node = dict[str, Any]


def train_keys(
    *,
    seed: Annotated[int, Seed],
    device: DeviceName,
    precision: str,
    kernels: str,
    run_dir: str,
    resume: str | None,
    model: Node,
    optimizer: Node,
    schedule: Node,
    data: Node,
    trainer: Node,
    checkpoint: Node,
    callbacks: Node,
    threads: Annotated[int, Threads] | None = None,
    experiment: Node | None = None,
) -> None:
    """The keys of config.yaml as far as a verb looks at them itself; only its signature is used."""


def beside_those_of_train(own: Callable[..., None]) -> Callable[..., None]:
    """A function whose signature has the keys of `train`, too.

    Args:
        own: Has a verb's own keys as its signature, all of them to be given by name.
    """
    both = {**inspect.signature(own).parameters, **inspect.signature(train_keys).parameters}

    def keys(**settings: Any) -> None:
        """Only its signature is used."""

    keys.__signature__ = inspect.Signature(list(both.values()))  # type: ignore[attr-defined]
    keys.__annotations__ = {name: parameter.annotation for name, parameter in both.items()}
    return keys
