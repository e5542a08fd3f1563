"""A finite-state machine: the state after each symbol that it has read.

By Krohn and Rhodes, every such machine is composed of groups and resets; this machine has both. Tests at lengths beyond
those of training measure how well a model tracks a state: Liu et al., Transformers Learn Shortcuts to Automata (arXiv
2210.10749).
"""

# R rows, T time, S states

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from samout_train.config import Problem, Range, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import Ids, Task, last_answer_only

HOLD, TURN, MIRROR, FIRST_SET = range(4)


@validated
@dataclass(kw_only=True)
class StateMachine(Task):
    """A row is symbols. The answer at each symbol is the state of the machine after it, from 0 to S - 1.

    Symbol 0 keeps state s, 1 makes it s + 1, 2 makes it -s (both modulo S), and 3 + k makes it k. The first symbol sets
    a state. For example, S = 5:

        row      6  1  1  2  0  4  1
        answers  3  4  0  0  0  1  2

    A test counts only the last answer.

    Args:
        num_states: States S.
        set_share: The share of symbols that set the state, so that the symbols before no longer matter.
    """

    num_states: Annotated[int, Range(2, 1000)]
    set_share: Annotated[float, Range(0, 1)]

    @property
    def num_ids(self) -> int:
        """Return the number of symbols, which exceeds the number of states."""
        return FIRST_SET + self.num_states

    @property
    def chance(self) -> float:
        """Return 1 / num_states."""
        return 1 / self.num_states

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths."""
        return self.length_problems(name, least=1, reason="a symbol")

    @cached_property
    def next_state(self) -> NDArray[np.int64]:
        """Return the next state for each symbol and state, (symbols, S)."""
        states = np.arange(self.num_states)
        moved = [states, (states + 1) % self.num_states, -states % self.num_states]
        return np.stack([*moved, *(np.full(self.num_states, state) for state in states)])

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        inputs_RT = generator.integers(FIRST_SET, size=(num_rows, seq_len))
        sets_RT = generator.random((num_rows, seq_len)) < self.set_share
        sets_RT[:, 0] = True
        inputs_RT[sets_RT] = FIRST_SET + generator.integers(self.num_states, size=int(sets_RT.sum()))
        answers_RT = np.zeros_like(inputs_RT)
        state_R = np.zeros(num_rows, dtype=np.int64)
        for place in range(seq_len):
            answers_RT[:, place] = state_R = self.next_state[inputs_RT[:, place], state_R]
        return inputs_RT, answers_RT

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with only the last answer."""
        return last_answer_only(self.draw)(generator, num_rows, value)


state_machine = source_function(StateMachine)
