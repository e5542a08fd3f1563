"""`python -m samout_train verify model=NAME`: a table of checks, PASS or FAIL, with figures and bounds."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.request import Request, answered, settings_of
from samout_train.config import ConfigError, DeviceName, Threads, key_of

if TYPE_CHECKING:
    from torch import nn

    from samout_train.checkpoint import LoadedRun
    from samout_train.evaluation.verify import Subject

Node = dict[str, Any]
VOCAB_SIZE, PAD_ID = 37, 3
SIZES = {"hidden_size": 48, "num_layers": 3, "num_heads": 4}
TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_seq_len": 64}


def keys(
    *,
    run: str | None,
    models: Literal["all"] | None,
    device: DeviceName,
    kernels: Literal["auto", "reference"],
    threads: Annotated[int, Threads] | None,
    model: Node | None = None,
) -> None:
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
    import torch

    from samout_train.checkpoint import load_run
    from samout_train.config import model_problems, options_of
    from samout_train.ops import use_kernels
    from samout_train.runtime import choose_device, use_threads
    from samout_train.training import model_node

    composed, request = settings_of(words, "verify", keys), Request(words, "verify")
    settings = {"model": None} | composed.config
    device = choose_device(settings["device"])
    if device.type == "mps":
        raise ValueError("device=mps: has no float64, which verify compares with: use device=cpu")
    use_kernels(settings["kernels"])
    use_threads(settings["threads"])
    torch.backends.cudnn.allow_tf32 = False  # torch's default: ten bits, which are too few for what is asked of fp32
    if sum(settings[key] is not None for key in ("model", "run", "models")) != 1:
        raise ConfigError("say what to verify, one of: model=NAME, run=RUN_DIR, models=all")
    if settings["run"] is not None:
        loaded = load_run(settings["run"])
        title = f"{loaded.checkpoint}, after step {loaded.step}"
        return int(not _table(title, loaded.model_node, *subjects_of_run(loaded), device))
    if settings["model"] is not None:
        typed = {key_of(word).removeprefix("model.") for word in request.overrides}
        nodes = {str(composed.choices["model"]): sized(settings["model"], typed)}
        if found := model_problems(*nodes.values()):
            raise ConfigError("\n".join(found))
    else:
        names = options_of("model", request.folders)
        nodes = {name: sized(model_node(name, config_dirs=request.config_dirs)) for name in names}
    held = [_table(name, node, *subjects_of(node), device) for name, node in nodes.items()]
    return int(not all(held))


def sized(node: Node, typed: set[str] | frozenset[str] = frozenset()) -> Node:
    """A model's settings at the sizes that it is verified at.

    Args:
        node: The `model` of a configuration.
        typed: The keys that a person has set: they stay.
    """
    sizes = SIZES | ({"hidden_size": VOCAB_SIZE} if _is_without_head(node) else {})
    return _with(node, {key: size for key, size in sizes.items() if key not in typed})


def subjects_of(node: Node) -> "tuple[Subject, Subject]":
    """What `verify` takes for a model that is not trained: the model, and a tiny one of the same kind.

    Args:
        node: The `model` of a configuration, at the sizes to verify it at.
    """
    from samout_train.evaluation.verify import Subject

    # Without a head the logits are a hidden state, within -1 and 1, which learns no batch by heart.
    tiny = _with(node, TINY | ({"head": "linear"} if _is_without_head(node) else {}))
    model = Subject(lambda: _built(node, VOCAB_SIZE, PAD_ID), VOCAB_SIZE, PAD_ID, node.get("max_seq_len"))
    return model, Subject(lambda: _built(tiny, VOCAB_SIZE, PAD_ID), VOCAB_SIZE, PAD_ID)


def subjects_of_run(loaded: "LoadedRun") -> "tuple[Subject, Subject]":
    """What `verify` takes for a trained model: the model as it is, and a tiny new one of the same kind."""
    from samout_train.evaluation.verify import Subject

    node, weights = loaded.model_node, loaded.model.state_dict()

    def trained() -> "nn.Module":
        model = _built(node, loaded.vocab_size, loaded.pad_id)
        model.load_state_dict(weights)
        return model

    model = Subject(trained, loaded.vocab_size, loaded.pad_id, node.get("max_seq_len"), trained=True)
    return model, subjects_of(node)[1]


def _is_without_head(node: Node) -> bool:
    """Whether the hidden state is the logits, so that its width is for the number of ids to say."""
    return node.get("head") == "none"


def _with(node: Node, sizes: Node) -> Node:
    return {**node, **{key: size for key, size in sizes.items() if key in node}}


def _built(node: Node, vocab_size: int, pad_id: int | None) -> "nn.Module":
    """Without dropout, which would be all that a comparison measures."""
    from samout_train.config import build

    model: nn.Module = build(_with(node, {"dropout": 0.0}), vocab_size=vocab_size, pad_id=pad_id)
    return model


def _table(title: str, node: Node, subject: "Subject", tiny: "Subject", device: Any) -> bool:
    from samout_train.evaluation.verify import verify

    started, held = time.monotonic(), True
    sizes = ", ".join(f"{key} {node[key]}" for key in SIZES if key in node)
    print(f"{title}: {sizes}, {subject.vocab_size} ids, dropout 0, on {device}")
    for row in verify(subject, tiny, device=device):
        held = held and row.passed
        word = "SKIP" if row.skipped else "PASS" if row.passed else "FAIL"
        print(f"  {word}  {row.name:<62} {row.measured:9.2e}  bound {row.bound:5.0e}  {row.note}".rstrip(), flush=True)
    print(f"  {'all held' if held else 'NOT ALL HELD'}, {time.monotonic() - started:.0f} s", flush=True)
    return held
