"""Check that documents in packed rows, split as in training and evaluation, give the same results as each one alone."""

# R rows, N documents, L time of a part, B batch, T time, V vocabulary

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.data import parts_of
from samout_train.evaluation.verify.result import Measured, NothingMeasuredError, distance, worst_gradient
from samout_train.evaluation.verify.subject import ModelUnderTest, gradients
from samout_train.models import evaluating
from samout_train.runtime import PrecisionName, autocast

NUM_TOKENS = 200  # more than a window of 64; with heads of 6 or more numbers, enough for the fused kernels
# Where documents begin, in tenths of a row. The first document of a row is the end of one that began before it.
TENTHS: tuple[list[int], ...] = ([1, 3, 6], [5], [], [8, 9])
CHUNK = 7
NO_PLACE = -1


def logits_as_alone(
    model: nn.Module, subject: ModelUnderTest, device: torch.device, *, precision: PrecisionName
) -> Measured:
    """Compare logits of packed documents, read in chunks with a carried state, with those of each whole document."""
    documents, parts, _ = _packed(subject, device)
    with evaluating(model), autocast(precision, device):
        alone_NV = torch.cat([model(ids_1T)[0][0] for ids_1T in documents])
        packed_NV = torch.empty_like(alone_NV)
        for inputs_NL, places_NL in parts:
            logits_NLV = _in_chunks(model, inputs_NL, CHUNK)
            is_inside_NL = places_NL != NO_PLACE
            packed_NV[places_NL[is_inside_NL]] = logits_NLV[is_inside_NL]
    return distance(packed_NV.float(), alone_NV.float()), _note(documents, parts)


def gradients_as_alone(model: nn.Module, subject: ModelUnderTest, device: torch.device, *, chunk: int) -> Measured:
    """Compare gradients of the loss of packed documents with the sum of the gradients of each alone.

    Args:
        model: The model.
        subject: Its description.
        device: The model's device.
        chunk: Tokens per call. The gradient flows through the carried state. Cut off there, as in training, it would
            depend on rounding: of equal maxima, the later one receives the whole gradient.
    """
    documents, parts, target_N = _packed(subject, device)
    model.train()
    wanted: dict[str, Tensor] = {}
    start = 0
    for ids_1T in documents:
        logits_1TV = _in_chunks(model, ids_1T, chunk)
        loss = F.cross_entropy(logits_1TV[0], target_N[start : start + ids_1T.shape[1]], reduction="sum")
        start += ids_1T.shape[1]
        for name, gradient in gradients(model, loss).items():
            wanted[name] = wanted.get(name, 0) + gradient
    losses = []
    for inputs_NL, places_NL in parts:
        is_inside_NL = places_NL != NO_PLACE
        logits_NV = _in_chunks(model, inputs_NL, chunk)[is_inside_NL]
        losses.append(F.cross_entropy(logits_NV, target_N[places_NL[is_inside_NL]], reduction="sum"))
    measured, worst = worst_gradient(gradients(model, torch.stack(losses).sum()), wanted)
    return measured, f"{_note(documents, parts)}; {worst}"


def gradient_across(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Return the largest sum of absolute gradients from every second document's loss to the others' embeddings."""
    documents, parts, target_N = _packed(subject, device)
    document_N = torch.repeat_interleave(torch.tensor([ids_1T.shape[1] for ids_1T in documents])).to(device)
    model.train()
    embedded: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if made.requires_grad and made.ndim == 3:
            embedded.append(made)

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        worst = torch.zeros((), device=device)
        for inputs_NL, places_NL in parts:
            embedded.clear()
            logits_NLV, _ = model(inputs_NL)
            if not embedded:
                raise NothingMeasuredError("there is no embedding")
            is_inside_NL = places_NL != NO_PLACE
            # Tokens after the end of a document count as a document of their own.
            is_learned_NL = is_inside_NL & (document_N[places_NL.clamp(min=0)] % 2 == 0)
            targets_NL = target_N[places_NL.clamp(min=0)].masked_fill(~is_learned_NL, NO_PLACE)
            loss = F.cross_entropy(
                logits_NLV.flatten(0, 1), targets_NL.flatten(), ignore_index=NO_PLACE, reduction="sum"
            )
            for gradient_NLD in torch.autograd.grad(loss, embedded):
                worst = torch.maximum(worst, gradient_NLD[~is_learned_NL].abs().sum())
    finally:
        for hook in hooks:
            hook.remove()
    return float(worst), _note(documents, parts)


def _packed(subject: ModelUnderTest, device: torch.device) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], Tensor]:
    """Return the documents, (1, T) each; the parts of their packed rows, with places; and the targets by place."""
    time = subject.tokens(NUM_TOKENS)
    starts = [sorted({tenth * time // 10 for tenth in tenths} - {0}) for tenths in TENTHS]
    ids_RT = subject.ids(len(TENTHS), time + 1, torch.device("cpu"))
    document_id = int(ids_RT[0, 0])
    other_id = int(ids_RT[ids_RT != document_id][0])
    ids_RT[ids_RT == document_id] = other_id
    for row, begun in enumerate(starts):
        ids_RT[row, begun] = document_id
    inputs_RT, targets_RT = ids_RT[:, :-1], ids_RT[:, 1:]
    documents = []
    for row_T, begun in zip(inputs_RT, starts, strict=True):
        documents += [row_T[None, start:stop].to(device) for start, stop in pairwise([0, *begun, time])]
    places_RT = torch.arange(inputs_RT.numel()).view_as(inputs_RT)
    parts = []
    for part in parts_of(inputs_RT, places_RT, document_id=document_id, ignore_index=NO_PLACE):
        parts.append((part.inputs_NL.to(device), part.targets_NL.to(device)))
    return documents, parts, targets_RT.flatten().to(device)


def _in_chunks(model: Callable[..., tuple[Tensor, object]], ids_BT: Tensor, chunk: int) -> Tensor:
    logits, state = [], None
    for start in range(0, ids_BT.shape[1], chunk):
        logits_BTV, state = model(ids_BT[:, start : start + chunk], state)
        logits.append(logits_BTV)
    return torch.cat(logits, dim=1)


def _note(documents: list[Tensor], parts: list[tuple[Tensor, Tensor]]) -> str:
    return f"{len(documents)} documents in {len(TENTHS)} rows, as {len(parts)} parts"
