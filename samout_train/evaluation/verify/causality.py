"""Check that a token changes no earlier logits, at every place where a kernel could read too far ahead."""

# B batch, T time, V vocabulary

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from samout_train.evaluation.verify.result import Measured
from samout_train.evaluation.verify.subject import ModelUnderTest
from samout_train.models import evaluating
from samout_train.runtime import PrecisionName, autocast

WORK = 4e11  # floating-point operations: enough for every place of most models of width 48, 32 places of 6 M parameters
FEWEST_PLACES = 32
MOST_ROWS = 32
ROWS_TIMES_PARAMETERS = 2e7  # bounds the memory of a pass with gradients


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
    affordable = share * WORK / (time * model.forward_flops_per_token(time))  # type: ignore[operator]
    places = chosen_places(time, max(FEWEST_PLACES, int(affordable)))
    worst, where = torch.zeros((), device=device), 0
    for place_B, before_BTV, after_BTV in _pairs(model, subject, places, device, training, precision):
        is_before_BT = torch.arange(time, device=device) < place_B[:, None]
        difference_BT = (after_BTV - before_BTV).abs().amax(-1).where(is_before_BT, 0)
        largest = difference_BT.max()  # NaN if there is one
        if not bool(largest <= worst):
            worst, where = largest, int(place_B[int(difference_BT.amax(1).argmax())])
    note = f"{len(places):,} of {time - 1:,} places"
    if where:
        note = f"{note}; the worst is {where}"
    return float(worst), note


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

    def logits(ids_BT: Tensor) -> Tensor:
        torch.manual_seed(0)  # a mixer that draws in training draws the same again
        with ExitStack() as stack:
            model.train()
            if not training:
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
