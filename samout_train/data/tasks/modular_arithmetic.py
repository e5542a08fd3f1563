"""Modular arithmetic: the running value of an expression without brackets, evaluated from left to right.

Source: Deletang et al., Neural Networks and the Chomsky Hierarchy (arXiv 2207.02098), section 4, `modular arithmetic
(simple)`, modulo 5. Departures: a product has no precedence; in training every intermediate value is an answer; and no
factor is 0, which would make everything before it irrelevant.
"""

# R rows, T time

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from samout_train.config import Problem, Range, validated
from samout_train.data.source import source_function
from samout_train.data.tasks.base import IGNORED, Ids, Task

PLUS, MINUS, TIMES = range(3)


@validated
@dataclass(kw_only=True)
class ModularArithmetic(Task):
    """A row is numbers below m with signs between them. The answer at a number is the value up to that number.

    Numbers are ids 0 to m - 1; the signs + - * are m, m + 1 and m + 2. For example, 3 + 4 * 2 - 1 modulo 5:

        row      3  5  4  7  2  6  1
        answers  3  -  2  -  4  -  3

    From left to right, since signs have no precedence: (3 + 4) mod 5 = 2, 2 * 2 = 4, 4 - 1 = 3. A test counts only the
    answer at the last number.

    Args:
        modulus: The modulus m, a prime number, so that all values are equally probable.
    """

    modulus: Annotated[int, Range(2, 97)]

    @property
    def num_ids(self) -> int:
        """Return the number of ids: numbers and signs."""
        return self.modulus + 3

    @property
    def chance(self) -> float:
        """Return 1 / modulus."""
        return 1 / self.modulus

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the lengths and the modulus."""
        found = self.length_problems(name, least=1, reason="a number")
        for factor in range(2, self.modulus):
            if self.modulus % factor == 0:
                text = f"is {factor} times {self.modulus // factor}, no prime number"
                problem = Problem(f"{name}.modulus", str(self.modulus), text=text, fix="set it to 5, 7 or 11")
                return [*found, problem]
        return found

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Ids, Ids]:
        """Return rows and their answers, (R, T) each."""
        inputs_RT = generator.integers(self.modulus, size=(num_rows, seq_len))
        signs_RT = generator.integers(3, size=(num_rows, seq_len))
        answers_RT = np.full((num_rows, seq_len), IGNORED)
        answers_RT[:, 0] = value_R = inputs_RT[:, 0]
        for place in range(1, seq_len):
            if place % 2:
                inputs_RT[:, place] = self.modulus + signs_RT[:, place]
                continue
            sign_R, number_R = signs_RT[:, place - 1], inputs_RT[:, place]
            number_R[sign_R == TIMES] = generator.integers(1, self.modulus, size=num_rows)[sign_R == TIMES]
            results = [value_R + number_R, value_R - number_R, value_R * number_R]
            answers_RT[:, place] = value_R = np.choose(sign_R, results) % self.modulus
        return inputs_RT, answers_RT

    def draw_test(self, generator: np.random.Generator, num_rows: int, value: int) -> tuple[Ids, Ids]:
        """Return rows with only the answer at their last number."""
        inputs_RT, answers_RT = self.draw(generator, num_rows, value)
        last = (value - 1) // 2 * 2
        answers_RT[:, :last] = IGNORED
        return inputs_RT, answers_RT


modular_arithmetic = source_function(ModularArithmetic)
