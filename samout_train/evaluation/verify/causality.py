"""Check that a token changes no earlier logits, at every place where a kernel could read too far ahead."""

# B batch, T time, V vocabulary

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samout_train.evaluation.verify.result import BF16, FP32, Measured
from samout_train.evaluation.verify.subject import LEAST_TOKENS, ModelUnderTest
from samout_train.models import evaluating
from samout_train.ops import reference_kernels
from samout_train.runtime import PrecisionName, autocast, random_states, set_random_states

WORK = 4e11  # floating-point operations: enough for every place of most models of width 48, 32 places of 6 M parameters
FEWEST_PLACES = 32
MOST_ROWS = 32
ROWS_TIMES_PARAMETERS = 2e7  # bounds the memory of a pass with gradients
MOST_LOGITS = 2**26  # of a batch
SHORT, SHORT_PLACES = 256, 16  # tokens and most places of the check before a training
SHORTEST, FEWEST_SHORT, SHORT_WORK = 64, 3, 2e10  # the same of large models, and the operations that make one large
STD_OF_ZEROS = 0.1  # of the numbers that stand for zeros in it
LONG, LONG_WORK, LONG_PLACES = 2048, 4e10, 4  # tokens, operations and fewest places of the check after it
ROUNDING = {"fp32": FP32, "bf16": BF16, "fp16": BF16}  # changes that are none, as a share of the largest logit


@dataclass(frozen=True)
class Leak:
    """The largest change of the logits before the first of some changed tokens.

    Args:
        place: Position of the first changed token, counted from 0.
        position: That of the changed logits.
        change: The largest difference of a logit; NaN if there is one.
        largest_logit: The largest absolute logit, to compare it with.
    """

    place: int
    position: int
    change: float
    largest_logit: float


def nothing_before_changes(
    model: nn.Module,
    subject: ModelUnderTest,
    device: torch.device,
    *,
    training: bool,
    precision: PrecisionName,
    share: float,
) -> Measured:
    """Return the largest difference in the logits before a place if all tokens from this place on change.

    Args:
        model: The model.
        subject: Its description.
        device: The model's device.
        training: Whether to use training mode and gradients.
        precision: Precision of the forward pass.
        share: Share of the places that WORK allows for the model's size.
    """
    time = subject.tokens()
    places = chosen_places(time, max(FEWEST_PLACES, _affordable(model, time, share * WORK)))
    worst = _worst_change(_pairs(model, subject, places, device, training, precision))
    note = f"{len(places):,} of {time - 1:,} places"
    if worst is None:
        return 0.0, note
    return worst.change, f"{note}; the worst is {worst.place}"


def find_leak(
    model: nn.Module, *, vocab_size: int, pad_id: int | None, seq_len: int, device: torch.device
) -> Leak | None:
    """Return where a model that is still to be trained sees later tokens, in a moment; None if that does not show.

    It takes a few evaluations of rows of at most 256 tokens, of large models 64, in float32 with torch's own
    operations, which need no compilation, and leaves weights and random states as they are. `find_trained_leak` checks
    the kernels.

    Args:
        model: A model that claims to be causal, before it is compiled or sharded.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None for no padding.
        seq_len: The longest sequence that it accepts for sure, in tokens.
        device: The model's device.
    """
    time = min(seq_len, SHORT)
    most = min(SHORT_PLACES, _affordable(model, time, SHORT_WORK))
    if most < FEWEST_SHORT:
        time, most = min(seq_len, SHORTEST), FEWEST_SHORT
    subject = _subject(model, vocab_size, pad_id, time)
    if subject is None:
        return None
    places = chosen_places(time, most)
    with reference_kernels():
        for change in (_probed(model), nullcontext()):  # numbers so changed may overflow
            with change:
                worst = _leak_at(places, model, subject, device, "fp32")
            if worst is None or not math.isnan(worst.change):
                return worst
    return None  # training reports what is not finite


def find_trained_leak(
    model: nn.Module,
    *,
    vocab_size: int,
    pad_id: int | None,
    seq_len: int,
    device: torch.device,
    precision: PrecisionName,
) -> Leak | None:
    """Return where a trained model sees later tokens; None if it does not.

    It takes about the time of one training step: whole rows of at most 2,048 tokens, with the kernels and the
    precision of the training, and each place of a row where that is affordable. Weights and random states stay.

    Args:
        model: A model that claims to be causal.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None for no padding.
        seq_len: Tokens of a row.
        device: The model's device.
        precision: Precision of the forward pass.
    """
    subject = _subject(model, vocab_size, pad_id, min(seq_len, LONG))
    if subject is None:
        return None
    time = subject.tokens()
    most = max(LONG_PLACES, _affordable(model, time, LONG_WORK))
    worst = _leak_at(chosen_places(time, most), model, subject, device, precision)
    if worst is None or math.isnan(worst.change):
        return None
    return worst


def _affordable(model: nn.Module, time: int, work: float) -> int:
    """Return the number of rows of `time` tokens that a model reads with so many operations."""
    return int(work / (time * model.forward_flops_per_token(time)))  # type: ignore[operator]


def _subject(model: nn.Module, vocab_size: int, pad_id: int | None, time: int) -> ModelUnderTest | None:
    """Return the description of a model; None if no token can change, or into none."""
    if time < LEAST_TOKENS or vocab_size - (pad_id is not None) < 2:
        return None
    return ModelUnderTest(lambda: model, vocab_size, pad_id, time, trained=True)


def _leak_at(
    places: list[int], model: nn.Module, subject: ModelUnderTest, device: torch.device, precision: PrecisionName
) -> Leak | None:
    """Return the largest change, which is NaN if one is; None if none is larger than rounding."""
    states = random_states(device)
    try:
        worst = _worst_change(_pairs(model, subject, places, device, False, precision))
    finally:
        set_random_states(states, device)
    if worst is None or worst.change <= ROUNDING[precision] * worst.largest_logit:
        return None
    return worst


@contextmanager
def _probed(model: nn.Module) -> Iterator[None]:
    """Make visible what mixers do in weights that training begins with, and restore these weights exactly afterwards.

    Behind small embeddings the first layer changes next to nothing, so they get a standard deviation near 1, by a power
    of two, which rounds nothing. Parameters that are zero throughout get small random numbers.
    """
    generator = torch.Generator().manual_seed(3)
    zeros = [parameter.detach() for parameter in model.parameters() if not parameter.count_nonzero()]
    before = [zero.clone() for zero in zeros]
    factors: dict[Tensor, float] = {}
    for part in model.modules():
        if not isinstance(part, nn.Embedding):
            continue
        weights_VD: Tensor = part.weight.detach()
        if 0 < (spread := float(weights_VD.std())) < math.inf:
            factors[part.weight] = 2.0 ** max(0, -round(math.log2(spread)))
    for zero in zeros:
        zero.copy_(STD_OF_ZEROS * torch.randn(zero.shape, generator=generator))
    for parameter, factor in factors.items():
        parameter.detach().mul_(factor)
    try:
        yield
    finally:
        for parameter, factor in factors.items():
            parameter.detach().div_(factor)
        for zero, was in zip(zeros, before, strict=True):
            zero.copy_(was)


def _worst_change(pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Leak | None:
    """Return the largest change of logits before the place from which tokens changed; None if nothing changed."""
    worst: Leak | None = None
    for place_B, before_BTV, after_BTV in pairs:
        is_before_BT = torch.arange(before_BTV.shape[1], device=place_B.device) < place_B[:, None]
        difference_BT = (after_BTV - before_BTV).abs().amax(-1).where(is_before_BT, 0)
        largest = float(difference_BT.max())  # NaN if there is one
        if worst is None or not largest <= worst.change:
            row, position = divmod(int(difference_BT.argmax()), difference_BT.shape[1])
            worst = Leak(int(place_B[row]), position, largest, float(before_BTV.abs().max()))
        if math.isnan(worst.change):
            break
    if worst is None or worst.change == 0:
        return None
    return worst


def what_is_there_changes(model: nn.Module, subject: ModelUnderTest, device: torch.device) -> Measured:
    """Return the number of places at which another token does not change the logits."""
    places, unmoved = chosen_places(subject.tokens(), FEWEST_PLACES), 0
    for place_B, before_BTV, after_BTV in _pairs(model, subject, places, device, False, "fp32"):
        same_BT = (before_BTV == after_BTV).all(-1)
        unmoved += int(same_BT.gather(1, place_B[:, None]).sum())
    return unmoved, f"of {len(places)} places"


def chosen_places(time: int, most: int) -> list[int]:
    """Return at most `most` places from 1: half by the largest power of two that divides them, half at random."""
    shuffled = (1 + torch.randperm(time - 1, generator=torch.Generator().manual_seed(2))).tolist()
    by_power = sorted(shuffled, key=lambda place: place & -place, reverse=True)
    return list(dict.fromkeys(by_power[: most // 2] + shuffled))[:most]


def _pairs(
    model: nn.Module,
    subject: ModelUnderTest,
    places: list[int],
    device: torch.device,
    training: bool,
    precision: PrecisionName,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield places with the logits of a sequence and of one whose tokens differ from the place on.

    Every batch has the same number of rows, since only equal shapes give equal bits.
    """
    quiet_T, other_T = subject.quiet_and_other_ids(subject.tokens(), device)
    parameters = sum(p.numel() for p in model.parameters())
    rows = min(len(places), max(2, min(MOST_ROWS, int(ROWS_TIMES_PARAMETERS / parameters))))
    rows = min(rows, max(1, MOST_LOGITS // (len(quiet_T) * subject.vocab_size)))

    def logits(ids_BT: Tensor) -> Tensor:
        torch.manual_seed(0)  # a mixer that draws in training draws the same again
        with ExitStack() as stack:
            if training:
                model.train()
            else:
                stack.enter_context(evaluating(model))
            stack.enter_context(autocast(precision, device))
            logits_BTV, _ = model(ids_BT)
        return logits_BTV.detach().float()

    before_BTV = logits(quiet_T.repeat(rows, 1))
    for start in range(0, len(places), rows):
        chosen = places[start : start + rows]
        place_B = torch.tensor(chosen + chosen[-1:] * (rows - len(chosen)), device=device)
        is_other_BT = torch.arange(len(quiet_T), device=device) >= place_B[:, None]
        after_BTV = logits(torch.where(is_other_BT, other_T, quiet_T))
        yield place_B[: len(chosen)], before_BTV[: len(chosen)], after_BTV[: len(chosen)]
