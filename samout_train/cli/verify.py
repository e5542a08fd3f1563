"""`python -m samout_train verify model=NAME`: a table of checks, PASS or FAIL, with figures and bounds."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.request import Request, answered, settings_of
from samout_train.config import ConfigError, DeviceName, Threads, key_of

if TYPE_CHECKING:
    from samout_train.evaluation.verify import ModelUnderTest

Node = dict[str, Any]


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
    from samout_train.config import check_model, options_of, require_no_problems
    from samout_train.evaluation.verify import models_under_test, sized, trained_models_under_test
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
        found = trained_models_under_test(
            loaded.model_node, loaded.model.state_dict(), vocab_size=loaded.vocab_size, pad_id=loaded.pad_id
        )
        return int(not _table(title, loaded.model_node, *found, device))
    if settings["model"] is not None:
        typed = {key_of(word).removeprefix("model.") for word in request.overrides}
        nodes = {str(composed.choices["model"]): sized(settings["model"], typed)}
        require_no_problems(check_model(*nodes.values()))
    else:
        names = options_of("model", request.folders)
        nodes = {name: sized(model_node(name, config_dirs=request.config_dirs)) for name in names}
    held = [_table(name, node, *models_under_test(node), device) for name, node in nodes.items()]
    return int(not all(held))


def _table(title: str, node: Node, model: "ModelUnderTest", tiny: "ModelUnderTest", device: Any) -> bool:
    from samout_train.evaluation.verify import SIZES, verify

    started, held = time.monotonic(), True
    sizes = ", ".join(f"{key} {node[key]}" for key in SIZES if key in node)
    print(f"{title}: {sizes}, {model.vocab_size} ids, dropout 0, on {device}")
    for row in verify(model, tiny, device=device):
        held = held and row.passed
        word = "SKIP" if row.skipped else "PASS" if row.passed else "FAIL"
        print(f"  {word}  {row.name:<62} {row.measured:9.2e}  bound {row.bound:5.0e}  {row.note}".rstrip(), flush=True)
    print(f"  {'all held' if held else 'NOT ALL HELD'}, {time.monotonic() - started:.0f} s", flush=True)
    return held
