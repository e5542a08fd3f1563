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

WORK = 4e11  # operations: enough for every place in most models of width 48, or for 32 places with 6 M parameters
FEWEST_PLACES = 32
MOST_ROWS = 32
ROWS_TIMES_PARAMETERS = 2e7  # bounds the memory of a pass with gradients
MOST_LOGITS = 2**26  # of a batch
SHORT, SHORT_PLACES = 256, 16  # tokens, and the most places, of the check before training
SHORTEST, FEWEST_SHORT, SHORT_WORK = 64, 3, 2e10  # the same for large models: those that would need more operations
STD_OF_ZEROS = 0.1  # standard deviation of the numbers that replace zeros in this check
LONG, LONG_WORK, LONG_PLACES = 2048, 4e10, 4  # tokens, operations and fewest places of the check after training
ROUNDING = {"fp32": FP32, "bf16": BF16, "fp16": BF16}  # largest change by rounding, as a share of the largest logit


@dataclass(frozen=True)
class Leak:
    """The largest change of logits at positions before the first changed token.

    Args:
        place: Position of the first changed token, counted from 0.
        position: Position of the changed logits.
        change: The largest difference of a logit; NaN if any difference is NaN.
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
    """Return the largest difference in the logits before a place when all tokens from this place on change.

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
    """Return where a model sees later tokens before it is trained, by a quick check; None if the check finds nothing.

    The check evaluates a few rows of at most 256 tokens, or 64 for large models, in float32 with torch's own
    operations, which need no compilation. Weights and random states stay unchanged. `find_trained_leak` checks the
    kernels.

    Args:
        model: A model that claims to be causal, before it is compiled or sharded.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None for no padding.
        seq_len: Length of a sequence that the model certainly accepts, in tokens.
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
        for change in (_probed(model), nullcontext()):  # without probing if probed weights overflow
            with change:
                worst = _leak_at(places, model, subject, device, "fp32")
            if worst is None or not math.isnan(worst.change):
                return worst
    return None  # training reports non-finite numbers


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

    The check takes about as long as one training step. It reads whole rows of at most 2,048 tokens, with the kernels
    and the precision of training, and changes every place of a row if affordable. Weights and random states stay
    unchanged.

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
    """Return the number of rows of `time` tokens that a model reads with this many operations."""
    return int(work / (time * model.forward_flops_per_token(time)))  # type: ignore[operator]


def _subject(model: nn.Module, vocab_size: int, pad_id: int | None, time: int) -> ModelUnderTest | None:
    """Return the description of a model; None if rows are too short, or ids too few, to change a token."""
    if time < LEAST_TOKENS or vocab_size - (pad_id is not None) < 2:
        return None
    return ModelUnderTest(lambda: model, vocab_size, pad_id, time, trained=True)


def _leak_at(
    places: list[int], model: nn.Module, subject: ModelUnderTest, device: torch.device, precision: PrecisionName
) -> Leak | None:
    """Return the largest change, NaN if any is NaN; None if all changes are within rounding."""
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
    """Change initial weights so that the effect of mixers shows, and restore the weights exactly afterwards.

    With small embeddings, the first layer has next to no effect. Embeddings are therefore scaled to a standard
    deviation near 1, by a power of two, which is exact. Parameters that are all zero get small random numbers.
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
    """Return the largest change of logits before the first changed token; None if nothing changed."""
    worst: Leak | None = None
    for place_B, before_BTV, after_BTV in pairs:
        is_before_BT = torch.arange(before_BTV.shape[1], device=place_B.device) < place_B[:, None]
        difference_BT = (after_BTV - before_BTV).abs().amax(-1).where(is_before_BT, 0)
        largest = float(difference_BT.max())  # NaN if any is NaN
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
    """Return at most `most` places from 1: half divisible by the largest powers of two, the others at random."""
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
    """Yield places, the logits of a sequence, and the logits of a sequence whose tokens differ from each place on.

    Every batch has the same number of rows, since only equal shapes give equal bits.
    """
    quiet_T, other_T = subject.quiet_and_other_ids(subject.tokens(), device)
    parameters = sum(p.numel() for p in model.parameters())
    rows = min(len(places), max(2, min(MOST_ROWS, int(ROWS_TIMES_PARAMETERS / parameters))))
    rows = min(rows, max(1, MOST_LOGITS // (len(quiet_T) * subject.vocab_size)))

    def logits(ids_BT: Tensor) -> Tensor:
        torch.manual_seed(0)  # a mixer with random numbers in training draws the same ones again
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
