"""Tasks against slow, obvious generators: the same answers row by row, and as often what is left to chance."""

import inspect
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Annotated, Any

import numpy as np
import pytest
import torch

import samout_train
from samout_train import Range, validated
from samout_train.config import CONF, build, compose_config
from samout_train.data import Source, as_source
from samout_train.data.tasks.base import IGNORED
from samout_train.data.tasks.brackets import Brackets
from samout_train.data.tasks.copy import Copy, copy
from samout_train.data.tasks.copy_first import CopyFirst
from samout_train.data.tasks.has_seen import HasSeen
from samout_train.data.tasks.induction import Induction
from samout_train.data.tasks.modular_arithmetic import ModularArithmetic
from samout_train.data.tasks.needle import Needle
from samout_train.data.tasks.parity import Parity
from samout_train.data.tasks.recall import Recall, distinct
from samout_train.data.tasks.reverse import Reverse
from samout_train.data.tasks.s5 import S5
from samout_train.data.tasks.selective_copy import SelectiveCopy
from samout_train.data.tasks.state_machine import StateMachine
from samout_train.training import DATA_SETTINGS
from samout_train.training.settings import problems
from tests.support.marks import spread

Row = tuple[list[int], list[int]]
NONE = IGNORED
ROWS = 3000
SHARED: dict[str, Any] = {"seq_len": 8, "num_sequences": 1, "num_test_sequences": 100, "seed": 0}
LENGTHS: dict[str, Any] = {**SHARED, "test_lengths": [8]}
SIGMAS = 5  # of a difference between two counts of some hundred features


class Task:
    """One task at a small size, drawn both ways."""

    def __init__(
        self,
        draw: Callable[..., Any],
        slow: Callable[[random.Random], Row],
        answers: Callable[[list[int]], list[int]],
        features: Callable[[list[int], list[int]], list[Any]],
        length: int,
    ) -> None:
        self.draw, self.slow, self.answers, self.features, self.length = draw, slow, answers, features, length


def slow_recall(chance: random.Random, vocab: int = 40, pairs: int = 3, power: float = 0.1, length: int = 16) -> Row:
    keys, values = chance.sample(range(1, vocab // 2), pairs), chance.sample(range(vocab // 2, vocab), pairs)
    row = [token for pair in zip(keys, values, strict=True) for token in pair]
    row += [chance.randrange(vocab) for _ in range(length - 2 * pairs)]
    answers = [NONE] * length
    gaps = list(range((length - 2 * pairs) // 2))
    for key, value in zip(keys, values, strict=True):
        (gap,) = chance.choices(gaps, [(gap + 1) ** (power - 1) for gap in gaps])
        gaps.remove(gap)
        row[2 * pairs + 2 * gap], answers[2 * pairs + 2 * gap] = key, value
    return row, answers


def slow_copy(chance: random.Random, symbols: int = 5, length: int = 12) -> Row:
    text = [chance.randrange(2, 2 + symbols) for _ in range(chance.randint(1, length // 2))]
    row, answers = [*text, 1, *text[:-1]], [NONE] * len(text) + text
    return row + [0] * (length - len(row)), answers + [NONE] * (length - len(answers))


def slow_selective_copy(chance: random.Random, symbols: int = 4, copied: int = 3, length: int = 11) -> Row:
    text = [chance.randrange(2, 2 + symbols) for _ in range(copied)]
    row = [0] * (length - copied)
    for place, symbol in zip(sorted(chance.sample(range(len(row)), copied)), text, strict=True):
        row[place] = symbol
    return row + [1] * copied, [NONE] * len(row) + text


def slow_induction(chance: random.Random, symbols: int = 6, length: int = 9) -> Row:
    row = [chance.randint(1, symbols) for _ in range(length)]
    mark = chance.randint(0, length - 3)
    row[mark] = row[-1] = 0
    return row, [NONE] * (length - 1) + [row[mark + 1]]


def slow_parity(chance: random.Random, modulus: int = 2, length: int = 7) -> Row:
    row = [chance.randrange(modulus) for _ in range(length)]
    return row, answers_parity(row, modulus)


def slow_s5(chance: random.Random, moves: str, things: int = 5, length: int = 5) -> Row:
    elements = list(permutations(range(things)))
    allowed = [e for e in elements if moves == "all" or sum(a != b for a, b in enumerate(e)) <= 2]
    row = [elements.index(chance.choice(allowed)) for _ in range(length)]
    return row, answers_s5(row, things)


def answers_parity(row: list[int], modulus: int = 2) -> list[int]:
    return [sum(row[: place + 1]) % modulus for place in range(len(row))]


def answers_s5(row: list[int], of: int = 5) -> list[int]:
    elements = list(permutations(range(of)))
    answers, things = [], list(range(of))  # where each thing is
    for move in row:
        things = [elements[move][place] for place in things]
        answers.append(elements.index(tuple(things)))
    return answers


def slow_needle(chance: random.Random, words: int = 6, needle: int = 2, length: int = 12) -> Row:
    row = [chance.randint(1, words) for _ in range(length)]
    distance = chance.randint(needle + 1, length - needle)
    first, second = length - needle - distance, length - needle
    row[first] = row[second] = 0
    text = row[first + 1 : first + 1 + needle]
    row[second + 1 :] = text[:-1]
    return row, [NONE] * second + text


def slow_has_seen(chance: random.Random, words: int = 8, length: int = 10) -> Row:
    pool = chance.sample(range(words), words // 2)
    row = [chance.choice(pool) for _ in range(length // 2)]
    seen, new = sorted(set(row)), sorted(set(range(words)) - set(row))
    answers = [chance.randint(0, 1) for _ in range(length // 2)]
    asked = [chance.choice(seen if answer else new) for answer in answers]
    return [2 + word for word in row] + [2 + words + word for word in asked], [NONE] * (length // 2) + answers


def slow_copy_first(chance: random.Random, symbols: int = 5, length: int = 7) -> Row:
    row = [chance.randint(1, symbols) for _ in range(length)]
    mark = chance.randint(1, length - 1)
    row[mark] = 0
    return row, answers_copy_first(row)


def slow_reverse(chance: random.Random, symbols: int = 5, length: int = 12) -> Row:
    text = [chance.randrange(2, 2 + symbols) for _ in range(chance.randint(1, length // 2))]
    back = text[::-1]
    row, answers = [*text, 1, *back[:-1]], [NONE] * len(text) + back
    return row + [0] * (length - len(row)), answers + [NONE] * (length - len(answers))


def slow_brackets(chance: random.Random, depth: int = 3, length: int = 12) -> Row:
    row: list[int] = []
    num_open = 0
    for _ in range(length):
        opens = num_open == 0 or (num_open < depth and chance.random() < 0.5)
        row.append(chance.randint(0, 1) if opens else 2)
        num_open += 1 if opens else -1
    return row, answers_brackets(row)


def slow_arithmetic(chance: random.Random, modulus: int = 5, length: int = 9) -> Row:
    row = [chance.randrange(modulus)]
    while len(row) < length:
        sign = chance.randrange(3)
        row += [modulus + sign, chance.randint(1 if sign == 2 else 0, modulus - 1)]
    return row, answers_arithmetic(row, modulus)


def slow_machine(chance: random.Random, states: int = 5, share: float = 0.2, length: int = 8) -> Row:
    row = [3 + chance.randrange(states)]
    while len(row) < length:
        row.append(3 + chance.randrange(states) if chance.random() < share else chance.randrange(3))
    return row, answers_machine(row, states)


def answers_copy_first(row: list[int]) -> list[int]:
    return [row[0] if token == 0 else NONE for token in row]


def answers_reverse(row: list[int]) -> list[int]:
    end = row.index(1)
    return ([NONE] * end + row[:end][::-1] + [NONE] * len(row))[: len(row)]


def answers_brackets(row: list[int]) -> list[int]:
    still_open: list[int] = []
    answers = []
    for token in row:
        answers.append(still_open.pop() if token == 2 else NONE)
        if token != 2:
            still_open.append(token)
    return answers


def answers_arithmetic(row: list[int], modulus: int = 5) -> list[int]:
    answers = [row[0]]
    for sign, number in zip(row[1::2], row[2::2], strict=True):
        value = eval(f"({answers[-1]} {'+-*'[sign - modulus]} {number}) % {modulus}")
        answers += [NONE, value]
    return answers


def answers_machine(row: list[int], states: int = 5) -> list[int]:
    state, answers = 0, []
    for symbol in row:
        if symbol == 1:
            state = (state + 1) % states
        elif symbol == 2:
            state = (states - state) % states
        elif symbol > 2:
            state = symbol - 3
        answers.append(state)
    return answers


def answers_copy(row: list[int]) -> list[int]:
    end = row.index(1)
    return ([NONE] * end + row[:end] + [NONE] * len(row))[: len(row)]


def answers_selective_copy(row: list[int]) -> list[int]:
    end = row.index(1)
    return [NONE] * end + [token for token in row if token > 1]


def answers_needle(row: list[int]) -> list[int]:
    first, second = (place for place, token in enumerate(row) if token == 0)
    return [NONE] * second + row[first + 1 : first + 1 + len(row) - second]


def answers_has_seen(row: list[int]) -> list[int]:
    half = len(row) // 2
    return [NONE] * half + [int(token - 8 in row[:half]) for token in row[half:]]


def answers_recall(row: list[int]) -> list[int]:
    """Of each place that could be one; fillers may be keys by chance, so a row has some of these."""
    values = dict(zip(row[0:6:2], row[1:6:2], strict=True))
    return [NONE] * 6 + [values.get(token, NONE) if place % 2 == 0 else NONE for place, token in enumerate(row[6:])]


def places(row: list[int], answers: list[int]) -> list[Any]:
    """Where answers are, what they are, and what stands at each place."""
    return [
        *(("answer at", place) for place, answer in enumerate(answers) if answer != NONE),
        *(("answer", answer) for answer in answers if answer != NONE),
        *(("token", place, token) for place, token in enumerate(row)),
    ]


TASKS = {
    "recall": Task(
        Recall(vocab_size=40, num_pairs=3, power=0.1, **LENGTHS).draw,
        slow_recall,
        answers_recall,
        lambda row, answers: (
            [("answer at", i) for i, answer in enumerate(answers) if answer != NONE]
            + [("first asked", next(i for i, answer in enumerate(answers) if answer == row[1]))]
            + [("token", i, token) for i, token in enumerate(row[:7])]
        ),
        16,
    ),
    "copy": Task(Copy(num_symbols=5, **LENGTHS).draw, slow_copy, answers_copy, places, 12),
    "selective_copy": Task(
        SelectiveCopy(num_symbols=4, num_copied=3, **LENGTHS).draw,
        slow_selective_copy,
        answers_selective_copy,
        places,
        11,
    ),
    "induction": Task(
        Induction(num_symbols=6, **LENGTHS).draw,
        slow_induction,
        lambda row: [NONE] * (len(row) - 1) + [row[row.index(0) + 1]],
        places,
        9,
    ),
    "parity": Task(Parity(**LENGTHS).draw, slow_parity, answers_parity, places, 7),
    "parity, modulo 3": Task(
        Parity(modulus=3, **LENGTHS).draw,
        partial(slow_parity, modulus=3),
        partial(answers_parity, modulus=3),
        places,
        7,
    ),
    "s5, all": Task(
        S5(moves="all", **LENGTHS).draw,
        partial(slow_s5, moves="all"),
        answers_s5,
        lambda row, answers: [(row[0] // 24, answers[-1] // 24)],
        5,
    ),
    "s5, swaps": Task(S5(moves="swaps", **LENGTHS).draw, partial(slow_s5, moves="swaps"), answers_s5, places, 5),
    "s5, three things": Task(
        S5(moves="all", things=3, **LENGTHS).draw,
        partial(slow_s5, moves="all", things=3),
        partial(answers_s5, of=3),
        places,
        5,
    ),
    "needle": Task(
        Needle(num_words=6, needle_words=2, test_distances=[3], **SHARED).draw, slow_needle, answers_needle, places, 12
    ),
    "copy_first": Task(
        CopyFirst(num_symbols=5, test_distances=[3], **SHARED).draw, slow_copy_first, answers_copy_first, places, 7
    ),
    "reverse": Task(Reverse(num_symbols=5, **LENGTHS).draw, slow_reverse, answers_reverse, places, 12),
    "brackets": Task(Brackets(max_depth=3, **LENGTHS).draw, slow_brackets, answers_brackets, places, 12),
    "modular_arithmetic": Task(
        ModularArithmetic(modulus=5, **LENGTHS).draw, slow_arithmetic, answers_arithmetic, places, 9
    ),
    "state_machine": Task(
        StateMachine(num_states=5, set_share=0.2, **LENGTHS).draw, slow_machine, answers_machine, places, 8
    ),
    "has_seen": Task(HasSeen(num_words=8, **LENGTHS).draw, slow_has_seen, answers_has_seen, places, 10),
}


def shown(task: type[Any]) -> Row:
    """The worked example in the docstring of a task, - being no answer."""
    lines = [
        line.split() for line in (task.__doc__ or "").splitlines() if line.strip().startswith(("row ", "answers "))
    ]
    (_, *row), (_, *answers) = lines
    return [int(token) for token in row], [NONE if answer == "-" else int(answer) for answer in answers]


# Worked out by hand, as they stand in the docstrings.
EXAMPLES: dict[type[Any], tuple[Row, Callable[[list[int]], list[int]]]] = {
    Copy: (([4, 7, 2, 1, 4, 7, 0, 0], [NONE, NONE, NONE, 4, 7, 2, NONE, NONE]), answers_copy),
    Reverse: (([4, 7, 2, 1, 2, 7, 0, 0], [NONE, NONE, NONE, 2, 7, 4, NONE, NONE]), answers_reverse),
    CopyFirst: (([5, 2, 7, 7, 0, 3], [NONE, NONE, NONE, NONE, 5, NONE]), answers_copy_first),
    Brackets: (([0, 1, 2, 0, 2, 2, 1], [NONE, NONE, 1, NONE, 0, 0, NONE]), answers_brackets),
    ModularArithmetic: (([3, 5, 4, 7, 2, 6, 1], [3, NONE, 2, NONE, 4, NONE, 3]), answers_arithmetic),
    HasSeen: (([2, 5, 2, 13, 14, 10], [NONE, NONE, NONE, 1, 0, 1]), answers_has_seen),
    Induction: (([3, 0, 5, 2, 0], [NONE, NONE, NONE, NONE, 5]), lambda row: [NONE] * 4 + [row[row.index(0) + 1]]),
    Needle: (([4, 0, 3, 6, 1, 0, 3], [NONE, NONE, NONE, NONE, NONE, 3, 6]), answers_needle),
    SelectiveCopy: (([0, 4, 0, 0, 3, 1, 1], [NONE, NONE, NONE, NONE, NONE, 4, 3]), answers_selective_copy),
    Parity: (([1, 0, 1, 1], [1, 1, 0, 1]), answers_parity),
    S5: (([1, 1, 2, 0, 2], [1, 0, 2, 2, 0]), answers_s5),
    StateMachine: (([6, 1, 1, 2, 0, 4, 1], [3, 4, 0, 0, 0, 1, 2]), answers_machine),
}


@pytest.mark.parametrize("task", EXAMPLES)
def test_the_example_of_a_docstring_is_worked_out_by_hand(task: type[Any]) -> None:
    (row, answers), answers_of = EXAMPLES[task]
    assert shown(task) == (row, answers)
    assert answers_of(row) == answers


def test_recall_with_blanks_is_the_example_of_its_docstring() -> None:
    """Its first pair is asked for at gap 2, its second at gap 0; all else is blank."""
    row, answers = shown(Recall)
    assert (row, answers) == (
        [3, 5, 1, 7, 1, 0, 0, 0, 3, 0, 0, 0],
        [NONE, NONE, NONE, NONE, 7, NONE, NONE, NONE, 5, NONE, NONE, NONE],
    )
    task = Recall(vocab_size=8, num_pairs=2, power=0.1, filler="blank", **LENGTHS)
    inputs, labels = (part.tolist() for part in task.draw(np.random.default_rng(0), 10_000, 12))
    assert (row, answers) in zip(inputs, labels, strict=True), "it is one of some thousand"
    assert all(
        row[place] == 0 for row, of in zip(inputs, labels, strict=True) for place in range(4, 12) if of[place] < 0
    )


def test_a_machine_and_an_expression_are_what_their_tables_say() -> None:
    machine = StateMachine(num_states=3, set_share=0.5, **LENGTHS)
    assert machine.next_state.tolist() == [[0, 1, 2], [1, 2, 0], [0, 2, 1], [0, 0, 0], [1, 1, 1], [2, 2, 2]]
    found = ModularArithmetic.problems({"modulus": 9, **LENGTHS}, "data")
    assert "data.modulus=9: is 3 times 3, no prime number" in str(found[0])
    inputs, labels = ModularArithmetic(modulus=5, **LENGTHS).draw_test(np.random.default_rng(0), 50, 8)
    assert (np.argwhere(labels != IGNORED)[:, 1] == 6).all() and len(inputs) == 50, "a row may end with a sign"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_that_of_a_slow_obvious_generator(name: str) -> None:
    task = TASKS[name]
    inputs, labels = (part.tolist() for part in task.draw(np.random.default_rng(0), ROWS, task.length))
    slowly = [task.slow(random.Random(seed)) for seed in range(ROWS)]
    for row, answers in [*zip(inputs, labels, strict=True), *slowly]:
        wanted = task.answers(row)
        if name == "recall":
            wanted = [value if answer != NONE else NONE for value, answer in zip(wanted, answers, strict=True)]
            asked = [row[place] for place, answer in enumerate(answers) if answer != NONE]
            assert sorted(asked) == sorted(row[0:6:2]) and len(set(asked)) == 3
        assert answers == wanted and len(row) == task.length
    fast = Counter(feature for row in zip(inputs, labels, strict=True) for feature in task.features(*row))
    slow = Counter(feature for row in slowly for feature in task.features(*row))
    for feature in fast.keys() | slow.keys():
        difference, spread = fast[feature] - slow[feature], math.sqrt(fast[feature] + slow[feature])
        assert abs(difference) <= SIGMAS * spread, (feature, fast[feature], slow[feature])


DEPENDENT = ("parity", "s5", "brackets", "modular_arithmetic", "state_machine")  # answers of a row depend on each other
NAMES = sorted({name.partition(",")[0] for name in TASKS})


def task_source(name: str, *overrides: str, seed: int = 0) -> Any:
    node = compose_config([f"data={name}", *overrides]).config["data"]
    return build({key: value for key, value in node.items() if key not in DATA_SETTINGS}, seed=seed)


def test_every_task_is_tested_here() -> None:
    """Those that are another one at another size name it, and are that."""
    tasks = {path.stem: path.read_text() for path in (CONF / "data").glob("*.yaml")}
    tasks = {name: text for name, text in tasks.items() if "num_test_sequences" in text}
    sizes = {name for name, text in tasks.items() if "defaults:\n  - recall\n" in text}
    assert tasks.keys() - sizes == set(NAMES) and sizes == {f"recall_{length}" for length in PAIRS}


PAIRS = {64: 4, 128: 8, 256: 16, 512: 64}


@pytest.mark.parametrize("length", PAIRS)
def test_recall_has_the_sizes_of_zoology(length: int) -> None:
    source = task_source(f"recall_{length}", "data.num_test_sequences=100")
    inputs, labels = source.validation.split(source.validation.windows(0, 100))
    assert inputs.shape == (100, length) and ((labels != IGNORED).sum(1) == PAIRS[length]).all()
    assert source.vocab_size == 8192 and source.train.num_rows == 100_000


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_rows_follow_from_the_seed_and_are_other_ones_in_each_epoch_split_and_test(name: str) -> None:
    few = ["data.num_sequences=300", "data.num_test_sequences=300"]
    source, again, other = task_source(name, *few), task_source(name, *few), task_source(name, *few, seed=1)
    indices = np.arange(300)
    epochs = [source.train.take(indices, epoch) for epoch in (0, 1, 2)]
    length = source.train.seq_len
    same_length = next(rows for rows in source.tests.values() if rows.seq_len == length)
    drawn = [*epochs, source.validation.windows(0, 300), same_length.windows(0, 300), other.train.take(indices, 0)]
    for number, first in enumerate(drawn):
        assert first.dtype == torch.int64 and first.shape == (300, 2 * length)
        for second in drawn[:number]:
            assert not torch.equal(first[:, :length], second[:, :length])
    assert torch.equal(again.train.take(indices[5:9], 1), epochs[1][5:9])
    assert torch.equal(source.train.take(indices, 0), epochs[0]), "an epoch that was forgotten is the same again"


@pytest.mark.parametrize("name", spread(NAMES, 2))
def test_tests_have_the_lengths_that_are_asked_for_and_enough_answers(name: str) -> None:
    by_distance = name in ("needle", "copy_first")
    key, given = ("test_distances", [8, 32, 300]) if by_distance else ("test_lengths", [16, 64, 300])
    source = task_source(name, f"data.{key}={given}")
    kind = key.removeprefix("test_").removesuffix("s")
    assert list(source.tests) == [f"{kind}_{value}" for value in given]
    for value, rows in zip(given, source.tests.values(), strict=True):
        inputs, labels = rows.split(rows.windows(0, rows.num_windows))
        assert inputs.min() >= 0 and inputs.max() < source.vocab_size
        answers = labels[labels != IGNORED]
        assert len(answers) >= 500 and answers.min() >= 0 and answers.max() < source.vocab_size
        if name == "copy_first":
            assert rows.seq_len == value + 1 and (inputs[:, -1] == 0).all() and (inputs[:, 0] == labels[:, -1]).all()
        elif name == "needle":
            marks = (inputs == 0).nonzero()[:, 1].view(-1, 2)
            assert ((marks[:, 1] - marks[:, 0]) == value).all() and rows.seq_len == max(32, value + 3)
        else:
            assert rows.seq_len == value
        if name in ("parity", "s5", "state_machine"):
            assert (labels[:, :-1] == IGNORED).all() and (labels[:, -1] != IGNORED).all()
        if name in ("copy", "reverse"):
            assert ((labels != IGNORED).sum(1) == value // 2).all()


@pytest.mark.parametrize("name", spread(NAMES, 3))
def test_guessing_comes_to_the_chance_that_is_shown(name: str) -> None:
    """A guess that knows which answers there can be: any one of them is right as often as chance says."""
    source = task_source(name, "data.num_test_sequences=4000", *(["data.moves=all"] if name == "s5" else []))
    _, labels = source.validation.split(source.validation.windows(0, 4000))
    answers = labels[labels != IGNORED]
    counts = torch.bincount(answers)
    counts = counts[counts > 0].double() / len(answers)
    assert len(counts) == pytest.approx(1 / source.chance, rel=0.03)
    sigma = math.sqrt(source.chance / (len(answers) if name not in DEPENDENT else 4000))
    assert (counts - source.chance).abs().max() < 6 * sigma + 0.1 * source.chance


@pytest.mark.parametrize(("count", "below", "many"), [(3, 40, 1000), (7, 9, 1000), (9, 9, 1), (1, 1, 1), (7, 15, 1)])
def test_distinct_numbers_are_all_as_probable(
    count: int, below: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samout_train.data.tasks.recall.MANY", many)
    drawn = distinct(np.random.default_rng(0), 20_000, count, below)
    assert drawn.shape == (20_000, count) and all(len(set(row)) == count for row in drawn[:500].tolist())
    for column in drawn.T:
        counts = np.bincount(column, minlength=below)
        assert np.abs(counts - 20_000 / below).max() < 5 * math.sqrt(20_000 / below)


def test_gaps_of_recall_are_as_numpy_draws_them_without_replacement() -> None:
    """The published program asks numpy for gaps of a power law without replacement; here they are drawn all at once."""
    pairs, gaps, power = 4, 28, 0.01
    weights = np.arange(1, gaps + 1) ** (power - 1.0)
    generator = np.random.default_rng(0)
    published = np.array([generator.choice(gaps, 4, replace=False, p=weights / weights.sum()) for _ in range(4000)])
    task = Recall(vocab_size=8192, num_pairs=pairs, power=power, **LENGTHS)
    inputs, labels = task.draw(generator, 4000, 64)
    asked = (np.argwhere(labels != IGNORED)[:, 1] - 2 * pairs) // 2
    ours, theirs = (np.bincount(part.flatten(), minlength=gaps) for part in (asked, published))
    assert (np.abs(ours - theirs) <= 5 * np.sqrt(ours + theirs)).all()
    assert inputs[:, 0:8:2].max() < 4096 <= inputs[:, 1:8:2].min()


@validated
@dataclass(kw_only=True)
class First(samout_train.Task):
    """A row is symbols; the answer at its end is the first one."""

    num_symbols: Annotated[int, Range(2)]

    @property
    def num_ids(self) -> int:
        return self.num_symbols

    @property
    def chance(self) -> float:
        return 1 / self.num_symbols

    def draw(self, generator: np.random.Generator, num_rows: int, seq_len: int) -> tuple[Any, Any]:
        return draw_first(self.num_symbols, generator, num_rows, seq_len)


def draw_first(
    num_symbols: int, generator: np.random.Generator, num_rows: int, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    inputs = generator.integers(num_symbols, size=(num_rows, seq_len))
    answers = np.full_like(inputs, IGNORED)
    answers[:, -1] = inputs[:, 0]
    return inputs, answers


@validated
def first_by_function(*, num_symbols: Annotated[int, Range(2)], seed: int, **shared: Any) -> Source:
    draw = partial(draw_first, num_symbols)
    return samout_train.task(draw, vocab_size=num_symbols, chance=1 / num_symbols, seed=seed, **shared)


def test_a_task_of_ones_own_is_a_dataclass_or_a_function_that_calls_task() -> None:
    settings = {**LENGTHS, "num_symbols": 5, "num_sequences": 30}
    one, other = as_source(First(**settings)), as_source(first_by_function(**settings))
    assert isinstance(one, Source) and one.description == other.description and list(one.tests) == ["length_8"]
    rows = np.arange(30)
    assert torch.equal(one.train.take(rows, 2), other.train.take(rows, 2))
    assert torch.equal(one.tests["length_8"].windows(0, 100), other.tests["length_8"].windows(0, 100))


def test_the_fields_of_a_task_are_its_schema() -> None:
    for build_task in (Copy, copy, First):
        with pytest.raises(ValueError, match=r"num_symbols \(1\) must be "):
            build_task(num_symbols=1, **LENGTHS)
        with pytest.raises(ValueError, match=r"seq_len \(0\) must be above 0"):
            build_task(num_symbols=2, **LENGTHS | {"seq_len": 0})
    own_first = ["num_symbols", "seq_len", "test_lengths", "num_sequences", "num_test_sequences", "seed"]
    assert list(inspect.signature(copy).parameters) == own_first
    words = ["data=copy", "device=cpu", f"data._target_={__name__}.First"]
    assert problems(compose_config(words).config) == []
    wrong = problems(compose_config([*words, "data.num_symbols=1", "data.seq_len=a"]).config)
    assert list(map(str, wrong)) == [
        "data.num_symbols=1: must be at least 2",
        "data.seq_len=a: must be a whole number, above 0",
    ]
    wrong = problems(compose_config([*words, "data.test_lengths=[8,8]"]).config)
    assert list(map(str, wrong)) == ["data.test_lengths=[8, 8]: has a value twice: remove one"]
