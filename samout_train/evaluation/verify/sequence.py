"""Check that a sequence gives the same results in pieces, with padding, in any batch, and with or without gradients."""

# B batch, T time, V vocabulary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.evaluation.verify.result import Measured, NothingMeasuredError, distance, worst_gradient
from samout_train.evaluation.verify.subject import NUM_TOKENS, ModelUnderTest, gradients, mean_loss
from samout_train.models import cross_entropy_sum, evaluating, held_bytes, state_bytes
from samout_train.runtime import PrecisionName, autocast

PREFIX = 40
SHORT, GRADIENT_TOKENS = 20, 150
PADDING = 9


def in_chunks(
    model: nn.Module, subject: ModelUnderTest, device: torch.device, *, size: int, precision: PrecisionName
) -> Measured:
    """Compare logits of the whole sequence with those of chunks after a prefix, without gradients."""
    ids_BT = subject.ids(2, subject.tokens(), device)
    prefix = _prefix(ids_BT)
    with evaluating(model), autocast(precision, device):
        whole_BTV, _ = model(ids_BT)
        chunked_BTV = _chunked(model, ids_BT, prefix, size)
    return distance(chunked_BTV[:, prefix:].float(), whole_BTV[:, prefix:].float()), f"{ids_BT.shape[1]:,} tokens"


def gradients_in_chunks(model: nn.Module, subject: ModelUnderTest, device: torch.device, *, size: int) -> Measured:
    """Compare gradients of the whole sequence with those through the states of chunks after a prefix."""
    num_tokens = GRADIENT_TOKENS if size < PREFIX else NUM_TOKENS
    ids_BT = subject.ids(2, subject.tokens(num_tokens), device)
    model.train()
    targets = ids_BT[:, 1:].flatten()
    whole_BTV, _ = model(ids_BT[:, :-1])
    wanted = gradients(model, F.cross_entropy(whole_BTV.flatten(0, 1), targets))
    chunked_BTV = _chunked(model, ids_BT[:, :-1], _prefix(ids_BT[:, :-1]), size)
    got = gradients(model, F.cross_entropy(chunked_BTV.flatten(0, 1), targets))
    measured, worst = worst_gradient(got, wanted)
    return measured, f"{ids_BT.shape[1]:,} tokens; {worst}"


def padded(model: nn.Module, subject: ModelUnderTest, device: torch.device, *, what: str) -> Measured:
    """Compare logits, loss or gradients of a sequence with and without padding after it."""
    if subject.pad_id is None:
        raise NothingMeasuredError("there is no padding")
    time = subject.tokens(SHORT + PADDING)
    num_padding = min(PADDING, time // 3)
    ids_BT = subject.ids(3, time - num_padding, device)
    padded_BT = F.pad(ids_BT, (0, num_padding), value=subject.pad_id)
    model.train()
    logits, losses, all_gradients = [], [], []
    for given_BT in (padded_BT, ids_BT):
        logits_BTV, _ = model(given_BT[:, :-1])
        losses.append(cross_entropy_sum(logits_BTV, given_BT[:, 1:], subject.pad_id))
        logits.append(logits_BTV[:, : ids_BT.shape[1] - 1])
        all_gradients.append(gradients(model, losses[-1]))
    if what == "gradients":
        return worst_gradient(*all_gradients)
    if what == "logits":
        return distance(*logits), ""
    return distance(*losses), ""


def in_any_batch(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Compare logits of a batch with those of its rows alone, without gradients."""
    ids_BT = subject.ids(3, subject.tokens(GRADIENT_TOKENS), device)
    with evaluating(model):
        alone_BTV = torch.cat([model(row_BT)[0] for row_BT in ids_BT.split(1)])
        return distance(model(ids_BT)[0], alone_BTV), ""


def gradients_in_any_batch(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Compare gradients of the mean loss of a batch with the mean of the gradients of its rows alone."""
    ids_BT = subject.ids(3, subject.tokens(GRADIENT_TOKENS), device)
    model.train()
    alone: dict[str, list[Tensor]] = {}
    for row_BT in ids_BT.split(1):
        for name, gradient in gradients(model, mean_loss(model, row_BT)).items():
            alone.setdefault(name, []).append(gradient)
    wanted = {name: torch.stack(rows).mean(0) for name, rows in alone.items()}
    return worst_gradient(gradients(model, mean_loss(model, ids_BT)), wanted)


def with_gradients(
    model: nn.Module, subject: ModelUnderTest, device: torch.device, *, precision: PrecisionName
) -> Measured:
    """Compare logits with and without gradients, in evaluation mode."""
    ids_BT = subject.ids(2, subject.tokens(GRADIENT_TOKENS), device)
    logits = []
    with evaluating(model, inference=False):
        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled), autocast(precision, device):
                logits.append(model(ids_BT)[0].detach().float())
    return distance(*logits), ""


def bytes_of_state(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Compare `state_bytes` with the bytes of a continued state, relative to the latter."""
    ids_BT = subject.ids(1, subject.tokens(GRADIENT_TOKENS), device)
    with evaluating(model):
        _, state = model(ids_BT[:, :-1])
        _, state = model(ids_BT[:, -1:], state)
    counted, held = state_bytes(state), held_bytes(state)
    reported: int = model.state_bytes(ids_BT.shape[1])  # type: ignore[operator]
    note = f"{counted:,} bytes after {ids_BT.shape[1]} tokens"
    if held != counted:
        note += f", {held:,} with spare room"
    return abs(reported - counted) / max(counted, 1), note


def _prefix(ids_BT: Tensor) -> int:
    return min(PREFIX, ids_BT.shape[1] // 2)


def _chunked(model: nn.Module, ids_BT: Tensor, prefix: int, size: int) -> Tensor:
    logits_BTV, state = model(ids_BT[:, :prefix])
    pieces = [logits_BTV]
    for chunk_BT in ids_BT[:, prefix:].split(size, dim=1):
        logits_BTV, state = model(chunk_BT, state)
        pieces.append(logits_BTV)
    return torch.cat(pieces, dim=1)
