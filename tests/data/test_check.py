"""Rows that cannot be trained on are told before the first step."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from samout_train.data import MatrixRows, Source, TokenRows, row_problems
from samout_train.data.hello import hello


def source(ids_RT: Tensor, ignore_index: int = -100) -> Source:
    right = MatrixRows(torch.ones(3, 5, dtype=torch.int64))
    return Source(
        vocab_size=9,
        pad_id=None,
        ignore_index=ignore_index,
        train=right,
        validation=MatrixRows(ids_RT),
        vocabulary=None,
        floor_nats=None,
        description={},
    )


def test_ids_within_the_vocabulary_and_labels_that_are_ignored_are_right() -> None:
    ids = torch.arange(9).repeat(2, 1)
    assert row_problems(source(ids)) == []
    assert row_problems(hello(ignore_index=-100, seed=0)) == []


def test_the_first_wrong_id_is_told_with_row_place_and_limit() -> None:
    ids = torch.ones(3000, 5, dtype=torch.int64)
    ids[2500, 2] = 70_000
    (problem,) = row_problems(source(ids))
    assert problem.startswith("data: id 70000 in validation row 2500, place 2, is out of range 0 to 8")
    ids[2500, 2], ids[1, 4] = 1, -1
    (problem,) = row_problems(source(ids))
    assert problem.startswith("data: target -1 in validation row 1, place 3, is out of range")


def test_a_stream_is_looked_at_as_a_whole() -> None:
    tokens = np.ones(100, dtype=np.uint16)
    tokens[77] = 9
    stream = replace(source(torch.ones(1, 2, dtype=torch.int64)), train=TokenRows(tokens, seq_len=4, seed=0))
    assert row_problems(stream) == ["data: token id 9 in the training split is out of range 0 to 8"]


def test_targets_that_are_all_ignored_are_told() -> None:
    (problem,) = row_problems(source(torch.full((4, 5), 2), ignore_index=2))
    assert "in 4 validation rows every target is 2, which is ignored (data.ignore_index)" in problem


def test_a_stream_of_which_every_target_is_ignored_is_told() -> None:
    tokens = np.full(5000, 3, dtype=np.uint16)
    tokens[0] = 4  # which no row has as a target
    given = replace(
        source(torch.ones(1, 2, dtype=torch.int64), 3), train=TokenRows(tokens, seq_len=4, seed=0), vocabulary=None
    )
    (problem,) = row_problems(given)
    assert (
        "training rows every target is 3, which is ignored (data.ignore_index), so there is nothing to learn" in problem
    )
    tokens[-2] = 4
    assert row_problems(given) == []
