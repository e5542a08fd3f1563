"""`python -m samout_train verify model=NAME`: run the checks of a model, and print PASS or FAIL, figure and bound."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.request import Request
from samout_train.cli.verb import verb
from samout_train.config import ConfigError, DeviceName, Threads, key_of

if TYPE_CHECKING:
    from samout_train.evaluation.verify import ModelUnderTest

Node = dict[str, Any]


@verb
def verify(
    request: Request,
    *,
    run: str | None,
    models: Literal["all"] | None,
    device: DeviceName,
    kernels: Literal["auto", "reference"],
    threads: Annotated[int, Threads] | None,
    model: Node | None = None,
) -> int:
    """Checks that a model is causal, that its recurrent form is exact, and that its gradients are right.

    Returns:
        The exit code: 0 all checks held, 1 one did not, 2 the request was wrong, 130 interrupted.
    """
    import torch

    from samout_train.checkpoint import load_trained
    from samout_train.config import check_model, options_of, require_no_problems
    from samout_train.evaluation.verify import models_under_test, sized, trained_models_under_test
    from samout_train.ops import use_kernels
    from samout_train.runtime import choose_device, use_threads
    from samout_train.training import model_node

    of_device = choose_device(device)
    if of_device.type == "mps":
        raise ValueError("device=mps: has no float64, which verify compares with: use device=cpu")
    use_kernels(kernels)
    use_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # TF32, torch's default, is less exact than fp32's bounds allow
    if [model, run, models].count(None) != 2:
        raise ConfigError("choose what to verify, one of: model=NAME, run=RUN_DIR, models=all")
    if run is not None:
        loaded = load_trained(run)
        title = f"{loaded.checkpoint}, after step {loaded.step}"
        found = trained_models_under_test(
            loaded.model_node, loaded.model.state_dict(), vocab_size=loaded.vocab_size, pad_id=loaded.pad_id
        )
        return int(not _table(title, loaded.model_node, *found, of_device))
    if model is not None:
        typed = {key_of(word).removeprefix("model.") for word in request.overrides}
        nodes = {str(request.choice("model")): sized(model, typed)}
        require_no_problems(check_model(*nodes.values()))
    else:
        nodes = {}
        for name in options_of("model", request.folders):
            nodes[name] = sized(model_node(name, config_dirs=request.config_dirs))
    all_held = True
    for name, node in nodes.items():
        all_held = _table(name, node, *models_under_test(node), of_device) and all_held
    return int(not all_held)


def _table(title: str, node: Node, model: "ModelUnderTest", tiny: "ModelUnderTest", device: Any) -> bool:
    from samout_train.evaluation.verify import SIZES, pattern_of, verify

    started, held = time.monotonic(), True
    sizes = ", ".join(f"{key} {node[key]}" for key in SIZES if key in node)
    if pattern := pattern_of(node):
        sizes += f", pattern [{','.join(pattern)}]"
    print(f"{title}: {sizes}, {model.vocab_size} ids, dropout 0, on {device}")
    for row in verify(model, tiny, device=device):
        held = held and row.passed
        word = "FAIL"
        if row.skipped:
            word = "SKIP"
        elif row.passed:
            word = "PASS"
        print(f"  {word}  {row.name:<62} {row.measured:9.2e}  bound {row.bound:5.0e}  {row.note}".rstrip(), flush=True)
    print(f"  {'all held' if held else 'NOT ALL HELD'}, {time.monotonic() - started:.0f} s", flush=True)
    return held
