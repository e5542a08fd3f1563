"""Find the size at which a model meets a budget: its width first, then the inner width of its feed-forward if any."""

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch

from samout_train.config import ConfigError, Problem, build, check_model
from samout_train.models import TRAINING_TIMES, num_parameters

Kind = Literal["parameters", "flops", "state_bytes", "seconds"]
Node = dict[str, Any]
TOLERANCE = 0.02
WIDEST = 2**20
SMALL_WIDTH = 1024  # below it, a step may be all overhead
LARGEST_UNIT = 4096  # of a width: the number of heads times the unit of a head's size
EVEN_SIZES = (8, 1)  # matrix units need multiples of 8; other sizes only if none of those fits
FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
NUMBER = re.compile(r"(\d[\d_]*\.?\d*(?:e[+-]?\d+)?)\s*([a-z]?)")
WARM_UP_STEPS, BLOCKS, STEPS_IN_A_BLOCK = 2, 4, 3


@dataclass(frozen=True)
class Budget:
    """A budget that all models have to meet.

    Args:
        kind: `parameters`: trainable elements. `flops`: operations of the matrix products per training token, in a row
            of the training length. `state_bytes`: the state of one sequence after such a row, in float32. `seconds`:
            the training time of a run on this machine.
        amount: In elements, operations, bytes or seconds.
    """

    kind: Kind
    amount: float

    @classmethod
    def of(cls, text: str) -> "Budget":
        """Return the budget of a text such as `parameters:800k`.

        Raises:
            ConfigError: if it is not a budget.
        """
        kind, colon, number = text.partition(":")
        read = NUMBER.fullmatch(number.strip().lower())
        if kind not in get_args(Kind) or not colon or read is None or read[2] not in FACTORS:
            wrong = f"must be a budget such as parameters:800k, with one of {', '.join(get_args(Kind))}"
            raise ConfigError(Problem("match", text, text=wrong))
        if kind == "seconds" and read[2]:
            raise ConfigError(Problem("match", text, text="seconds have no unit", fix="write seconds:300"))
        amount = float(read[1].replace("_", "")) * FACTORS[read[2]]
        if not 0 < amount < math.inf:
            raise ConfigError(Problem("match", text, text="must be above 0, and finite"))
        return cls(cast(Kind, kind), amount)

    @property
    def typed(self) -> str:
        """Return the text that `of` reads, in one form however the budget was typed."""
        return f"{self.kind}:{self.amount:.10g}"

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:,.10g}"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model at a budget.

    Args:
        settings: Keys of its YAML, such as `hidden_size`.
        cost: The amount of the budget that it takes.
    """

    settings: Mapping[str, int]
    cost: float


def matched(label: str, node: Node, budget: Budget, cost_of: Callable[[Node], float]) -> Sizes:
    """Return the sizes at which a model meets the budget within 2 %.

    Args:
        label: Label of the model, for messages.
        node: The `model` of a configuration.
        budget: The budget to meet.
        cost_of: Returns the cost of a node in the unit of the budget; must grow with the sizes.

    Raises:
        ConfigError: if no width of the model or its feed-forward meets it; the message names the nearest sizes.
    """
    if "hidden_size" not in node:
        text = f"has no hidden_size, so no size of it can be found for match={budget}"
        raise ConfigError(Problem(label, text=text))
    unit = smallest_width(node)
    if unit is None:
        raise ConfigError(Problem(label, text="no width of it is allowed", fix=str(check_model(node)[0])))
    tried = _around(lambda size: {"hidden_size": size}, unit, node, budget, cost_of)
    nearest = sorted(tried, key=lambda sizes: _distance(sizes, budget))
    if _fits(nearest[0], budget):
        return nearest[0]
    if node.get("ffn_size", 0) is None:  # otherwise it is set, or the model has no feed-forward
        for even in EVEN_SIZES:
            for width in nearest:
                found = _around(partial(_with_feed_forward, width), even, node, budget, cost_of)
                best = min(found, key=lambda sizes: _distance(sizes, budget))
                if _fits(best, budget):
                    return best
    near = []
    for sizes in sorted(tried, key=lambda sizes: sizes.cost):
        named = " ".join(f"{key} {size}" for key, size in sizes.settings.items())
        near.append(f"{named} takes {sizes.cost:,.6g} ({sizes.cost / budget.amount - 1:+.1%})")
    text = f"no width, nor a feed-forward's, is within {TOLERANCE:.0%} of match={budget}; {'; '.join(near)}"
    raise ConfigError(Problem(label, text=text, fix="take one of these budgets, or other layers or heads"))


def smallest_width(node: Node) -> int | None:
    """Return the smallest width that a model can have with its heads, or None; other widths are multiples of it."""
    if "hidden_size" not in node:
        return None
    for width in range(1, LARGEST_UNIT):
        if not check_model(node | {"hidden_size": width}):
            return width
    return None


def model_cost(kind: Kind, node: Node, *, vocab_size: int, pad_id: int | None, seq_len: int) -> float:
    """Return the cost of a model by its sizes alone, in the unit of the budget; nothing is computed.

    Args:
        kind: Any but `seconds`.
        node: The `model` of a configuration.
        vocab_size: Number of token ids.
        pad_id: Id of the padding; None for no padding.
        seq_len: Targets of a training row.
    """
    with torch.device("meta"):
        model: Any = build(node, vocab_size=vocab_size, pad_id=pad_id)
    if kind == "parameters":
        return num_parameters(model)
    if kind == "flops":
        return float(TRAINING_TIMES * model.forward_flops_per_token(seq_len))
    return float(model.state_bytes(seq_len))


def seconds_a_step(trainer: Any) -> float:
    """Return the seconds of a training step: the fastest of a few blocks, which is the least disturbed one.

    Args:
        trainer: As `samout_train.build_trainer` makes it.
    """
    for _ in range(WARM_UP_STEPS):
        float(trainer.step())
    times = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(STEPS_IN_A_BLOCK):
            loss = trainer.step()
        float(loss)  # waits for the device
        times.append((time.perf_counter() - start) / STEPS_IN_A_BLOCK)
    return min(times)


def _around(
    settings_of: Callable[[int], Mapping[str, int]],
    unit: int,
    node: Node,
    budget: Budget,
    cost_of: Callable[[Node], float],
) -> list[Sizes]:
    """Return the largest multiple of a unit below the budget and the smallest one that reaches it, if they exist."""

    def sizes(multiple: int) -> Sizes:
        settings = settings_of(multiple * unit)
        return Sizes(settings, cost_of(node | dict(settings)))

    low = sizes(1)
    if low.cost >= budget.amount:
        return [low]
    below, above = 1, 2
    high = sizes(above)
    while high.cost < budget.amount:
        # A cost that does not grow with the size cannot be met; small sizes may take equally long.
        grows = high.cost > low.cost or (budget.kind == "seconds" and above * unit < SMALL_WIDTH)
        if 2 * above * unit > WIDEST or not grows:
            return [high]
        below, low, above = above, high, 2 * above
        high = sizes(above)
    while above - below > 1:
        middle = (below + above) // 2
        found = sizes(middle)
        if found.cost < budget.amount:
            below, low = middle, found
        else:
            above, high = middle, found
    return [low, high]


def _with_feed_forward(width: Sizes, size: int) -> Mapping[str, int]:
    return {**width.settings, "ffn_size": size}


def _distance(sizes: Sizes, budget: Budget) -> float:
    if sizes.cost <= 0:
        return math.inf
    return abs(math.log(sizes.cost / budget.amount))


def _fits(sizes: Sizes, budget: Budget) -> bool:
    return abs(sizes.cost / budget.amount - 1) <= TOLERANCE
