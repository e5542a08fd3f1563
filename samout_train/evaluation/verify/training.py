"""Check that a model trains correctly: gradients, compilation, determinism, saving and loading, memorising a batch."""

# B batch, T time, V vocabulary

import io
import time
from typing import Any

import torch
from torch import nn

from samout_train.evaluation.verify.result import (
    FP32,
    OVERFIT_NATS,
    Measured,
    NothingMeasuredError,
    distance,
    worst_error,
    worst_gradient,
)
from samout_train.evaluation.verify.subject import ModelUnderTest, gradients, mean_loss
from samout_train.models import evaluating, sees_future
from samout_train.runtime import has_cpp_compiler

STEP = 1e-6
OVERFIT_STEPS, OVERFIT_RATE = 500, 1e-2
COMPILED_TOKENS = 6  # torch unrolls recurrent modules over time
SHORT, FILE_TOKENS = 20, 150
TINY = "of a tiny new model"


def finite_differences(tiny: ModelUnderTest, device: torch.device) -> Measured:
    """Compare gradients along a random direction with the difference of two losses, in float64.

    The error is relative to the norm of the parameter's gradient, because the derivative itself is small along a
    direction that is nearly orthogonal to the gradient.
    """
    model = tiny.model(device).double().train()
    ids_BT = tiny.ids(2, 7, device)
    wanted = gradients(model, mean_loss(model, ids_BT))
    generator = torch.Generator().manual_seed(2)
    errors = {}
    with torch.no_grad():
        for name, gradient in wanted.items():
            parameter = model.get_parameter(name)
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(device)
            here = parameter.clone()
            losses = []
            for step in (STEP, -STEP):
                parameter.copy_(here + step * direction)
                losses.append(mean_loss(model, ids_BT))
            parameter.copy_(here)
            errors[name] = ((losses[0] - losses[1]) / (2 * STEP) - (gradient * direction).sum()).abs()
    measured, worst = worst_error(errors, wanted)
    return measured, f"{TINY} with {len(wanted)} tensors of weights; {worst}"


def as_in_float64(tiny: ModelUnderTest, device: torch.device) -> Measured:
    """Compare gradients in float32, which has fast paths, with those in float64, which finite differences check."""
    ids_BT = tiny.ids(2, SHORT, device)
    found = []
    for dtype in (torch.float32, torch.float64):
        model = tiny.model(device).to(dtype).train()
        found.append(gradients(model, mean_loss(model, ids_BT)))
    measured, worst = worst_gradient(*found)
    return measured, f"{TINY}; {worst}"


def compiled(tiny: ModelUnderTest, device: torch.device) -> Measured:
    """Compare gradients and logits of the compiled model with those of the model itself."""
    from torch._dynamo import config
    from torch._dynamo.backends.registry import lookup_backend

    model = tiny.model(device).train()
    ids_BT = tiny.ids(2, COMPILED_TOKENS, device)
    backend, instead = "inductor", ""
    if device.type == "cpu" and not has_cpp_compiler():
        backend, instead = "aot_eager", ", since there is no C++ compiler"
    compile_graph, sizes = lookup_backend(backend), []

    def counted(graph: Any, inputs: Any) -> Any:
        sizes.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return compile_graph(graph, inputs)

    started = time.monotonic()
    found, logits = [], []
    try:
        # By default torch does not compile recurrent modules and would compare them with themselves.
        with config.patch(allow_rnn=True):
            for function in (torch.compile(model, backend=counted), model):
                logits.append(function(ids_BT)[0])
                found.append(gradients(model, logits[-1].logsumexp(-1).mean()))
    finally:
        torch._dynamo.reset()
    if not sizes:
        raise NothingMeasuredError("torch compiled nothing of it")
    graphs = f"{sum(sizes)} operations in {len(sizes)} graph"
    if len(sizes) > 1:
        graphs += "s"
    note = f"{TINY}: {backend}{instead}, {graphs}, {time.monotonic() - started:.0f} s"
    if not (of_logits := distance(*logits)) <= FP32:
        return of_logits, f"{note}; the logits"
    measured, worst = worst_gradient(*found)
    return measured, f"{note}; {worst}"


def missing_gradients(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Return the number of parameters whose gradient is zero or not finite."""
    found = gradients(model.train(), mean_loss(model, subject.ids(3, subject.tokens(SHORT), device)))
    bad = []
    for name, gradient in found.items():
        if not gradient.isfinite().all() or not gradient.any():
            bad.append(name)
    return len(bad), ", ".join(bad[:3])


def twice(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Return the largest difference between two computations of the same loss and gradients."""
    ids_BT = subject.ids(3, subject.tokens(SHORT), device)
    results = []
    for _ in range(2):
        torch.manual_seed(0)  # a mixer with random numbers in training draws the same ones again
        loss = mean_loss(model.train(), ids_BT)
        values = [loss.detach()[None]]
        for gradient in gradients(model, loss).values():
            values.append(gradient.flatten())
        results.append(torch.cat(values))
    return float((results[0] - results[1]).abs().max()), ""


def saved_and_loaded(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Return the largest difference in logits after saving weights and a state and loading them into a zeroed model."""
    ids_BT = subject.ids(3, subject.tokens(FILE_TOKENS), device)
    prefix = ids_BT.shape[1] // 2
    file = io.BytesIO()
    # Not in inference mode: torch sums weights created there in another order.
    other = subject.model(device, seed=1)
    with evaluating(model), evaluating(other):
        whole_BTV, _ = model(ids_BT)
        _, state = model(ids_BT[:, :prefix])
        torch.save({"weights": model.state_dict(), "state": state}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True, map_location=device)
        for tensor in (*other.parameters(), *other.state_dict().values()):
            tensor.zero_()
        other.load_state_dict(saved["weights"])
        differences = [(other(ids_BT)[0] - whole_BTV).abs().max()]
        if not sees_future(model):
            rest_BT = ids_BT[:, prefix:]
            differences.append((other(rest_BT, saved["state"])[0] - model(rest_BT, state)[0]).abs().max())
    return float(torch.stack(differences).max()), ""


def memorised_batch(tiny: ModelUnderTest, device: torch.device) -> Measured:
    """Return the loss of one batch after training on it alone."""
    model = tiny.model(device, as_trained=True).train()
    ids_BT = tiny.ids(3, 16, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=OVERFIT_RATE)
    for step in range(OVERFIT_STEPS + 1):
        loss = mean_loss(model, ids_BT)
        if float(loss.detach()) <= OVERFIT_NATS or step == OVERFIT_STEPS:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach()), f"{TINY}: nats after {step} steps"
