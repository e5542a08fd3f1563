"""Keep an exponential moving average (EMA) of a run's weights, in addition to the trained weights.

    average = average + (1 - 0.5^(tokens / half_life)) (weights - average)

after each step, in float32 or wider. The half-life is in tokens, so that it means the same at any batch size. During
the warm-up, while the learning rate rises for the first time, the average equals the weights.

Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samout_train.config import ConfigError, Problem
from samout_train.models import ParallelModel


def sharding_problem(half_life: float) -> Problem:
    """Return why sharded parameters are not averaged, and what to do."""
    text, fix = "averages whole weights, and trainer.parallel=fsdp shards them", "leave one of them out"
    return Problem("trainer.ema", f"{half_life:g}", text=text, fix=fix)


def decay_problem(half_life: float) -> Problem:
    """Return the problem of a half-life below one token, which is probably meant as a decay per step."""
    fix = "give tokens, such as 500_000"
    if half_life > 0.9:
        steps = math.log(0.5) / math.log(half_life)
        fix = f"a decay of {half_life} a step halves a weight in {steps:,.0f} steps: give their tokens, such as 500_000"
    text = "is a number of tokens in which a step's weight halves"
    return Problem("trainer.ema", f"{half_life}", text=text, fix=fix)


class WeightAverage:
    """Average all floating-point parameters of a model.

    Args:
        shared: The model.
        half_life: Tokens after which a step's weights count half.

    Attributes:
        started: Whether the warm-up is over.

    Raises:
        ConfigError: if the parameters are sharded.
    """

    def __init__(self, shared: ParallelModel, *, half_life: float) -> None:
        if shared.is_sharded:
            raise ConfigError(sharding_problem(half_life))
        self.half_life = half_life
        self.started = False
        self._model = shared.model
        self._parameters: dict[str, nn.Parameter] = {}
        for name, parameter in shared.model.named_parameters():
            if parameter.is_floating_point():
                self._parameters[name] = parameter
        self._averages: dict[str, Tensor] = {}
        self._begin()

    def _begin(self) -> None:
        """Begin with the current weights."""
        self.started = False
        for name, parameter in self._parameters.items():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self._averages[name] = parameter.detach().to(dtype, copy=True)

    @torch.no_grad()
    def update(self, num_tokens: int, *, rate_rises: bool, held_back: Tensor | None) -> None:
        """Move the average towards the weights after a step.

        Args:
            num_tokens: Counted targets of the step.
            rate_rises: Whether the learning rate rose from the previous step, or there was no previous step.
            held_back: On the device: 1 if the step left the weights unchanged; None counts as 0.
        """
        self.started = self.started or not rate_rises
        averages, weights = list(self._averages.values()), []
        for name, parameter in self._parameters.items():
            weights.append(parameter.detach().to(self._averages[name].dtype))
        if not self.started:
            torch._foreach_copy_(averages, weights)
            return
        share: float | Tensor = 1 - 0.5 ** (num_tokens / self.half_life)
        if held_back is not None:
            share = share * (1 - held_back)
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(averages, differences)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Replace the model's weights by the average inside the context, and restore them bit for bit afterwards."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            self._set(self._averages)
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the average, by the names of the model's parameters, and whether the warm-up is over."""
        return {"weights": dict(self._averages), "started": self.started}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore the state returned by `state_dict`; None begins with the current weights."""
        self._begin()
        if state is None:
            return
        self.started = state["started"]
        with torch.no_grad():
            for name, average in self._averages.items():
                average.copy_(state["weights"][name])
