"""`python -m samout_train verify model=NAME`: a table of checks, PASS or FAIL, with figures and bounds."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from samout_train.command_line import Request, answered, settings_of
from samout_train.config import ConfigError

if TYPE_CHECKING:
    from torch import nn

VOCAB_SIZE, PAD_ID = 37, 3
SIZES = {"hidden_size": 48, "num_layers": 3, "num_heads": 4, "dropout": 0.0}
TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "dropout": 0.0}


def keys(*, run: str | None, models: Literal["all"] | None, device: str, model: dict[str, Any] | None = None) -> None:
    """The keys of verify.yaml; only its signature is used."""


def main(words: list[str]) -> int:
    """Verifies.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 all checks held, 1 one did not, 2 the request was wrong, 130 interrupted.
    """
    return answered(words, "verify", keys, _verify)


def _verify(words: list[str]) -> int:
    from samout_train.hydra_messages import options_of
    from samout_train.loading import load_run
    from samout_train.problems import model_node, model_problems
    from samout_train.runtime import choose_device

    composed, request = settings_of(words, "verify", keys), Request(words, "verify")
    settings = {"model": None} | composed.config
    device = choose_device(settings["device"])
    if sum(settings[key] is not None for key in ("model", "run", "models")) != 1:
        raise ConfigError("say what to verify, one of: model=NAME, run=RUN_DIR, models=all")
    if settings["run"] is not None:
        loaded = load_run(settings["run"])
        weights = loaded.model.state_dict()

        def trained(tiny: bool) -> "nn.Module":
            sizes = TINY if tiny else {"dropout": 0.0}
            model = _sized(loaded.model_node, sizes, loaded.vocab_size, loaded.pad_id)
            if not tiny:
                model.load_state_dict(weights)
            return model

        title = f"{loaded.checkpoint}, after step {loaded.step}"
        return int(not _table(title, trained, loaded.vocab_size, loaded.pad_id, device))
    if settings["model"] is not None:
        if found := model_problems(settings["model"]):
            raise ConfigError("\n".join(found))
        nodes = {str(composed.choices["model"]): settings["model"]}
    else:
        nodes = {
            name: model_node(name, config_dirs=request.config_dirs) for name in options_of("model", request.folders)
        }
    held = []
    for name, node in nodes.items():
        build_one = partial(_of_size, node)
        held.append(_table(name, build_one, VOCAB_SIZE, PAD_ID, device))
    return int(not all(held))


def _of_size(node: dict[str, Any], tiny: bool) -> "nn.Module":
    return _sized(node, TINY if tiny else SIZES, VOCAB_SIZE, PAD_ID)


def _sized(node: dict[str, Any], sizes: dict[str, Any], vocab_size: int, pad_id: int | None) -> "nn.Module":
    from samout_train.config import build

    settings = {**node, **{key: size for key, size in sizes.items() if key in node}}
    model: nn.Module = build(settings, vocab_size=vocab_size, pad_id=pad_id)
    return model


def _table(title: str, build: Any, vocab_size: int, pad_id: int | None, device: Any) -> bool:
    from samout_train.verification import verify

    started, held = time.monotonic(), True
    print(f"{title}, on {device}")
    for row in verify(build, vocab_size=vocab_size, pad_id=pad_id, device=device):
        held = held and row.passed
        word = "SKIP" if row.skipped else "PASS" if row.passed else "FAIL"
        print(f"  {word}  {row.name:<56} {row.measured:9.2e}  bound {row.bound:7.0e}  {row.note}".rstrip(), flush=True)
    print(f"  {'all held' if held else 'NOT ALL HELD'}, {time.monotonic() - started:.0f} s", flush=True)
    return held
