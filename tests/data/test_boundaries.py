"""Rows split where documents begin: each token once, in parts that fit the memory of the rows."""

import pytest
import torch

from samout_train.data import parts_of

SOS, IGNORED = 1, 3


def test_documents_become_rows_of_their_own_filled_with_targets_that_do_not_count() -> None:
    rows = torch.tensor([[5, 6, 1, 7, 8, 9, 1, 4], [1, 4, 5, 6, 7, 8, 9, 2]])
    longest, middle, short = parts_of(rows, rows + 10, document_id=SOS, ignore_index=IGNORED)
    assert longest.inputs_NL.tolist() == [[1, 4, 5, 6, 7, 8, 9, 2]]
    assert longest.targets_NL.tolist() == [[11, 14, 15, 16, 17, 18, 19, 12]]
    assert [middle.inputs_NL.tolist(), middle.targets_NL.tolist()] == [[[1, 7, 8, 9]], [[11, 17, 18, 19]]]
    assert [short.inputs_NL.tolist(), short.targets_NL.tolist()] == [[[5, 6], [1, 4]], [[15, 16], [11, 14]]]
    rows[0, 6] = 5  # documents of 8, 6 and 2 tokens, in parts of 8, 4, 2 or 1, with as many rows as there were
    filled, short = parts_of(rows, rows + 10, document_id=SOS, ignore_index=IGNORED, few_shapes=True)
    assert filled.inputs_NL.tolist() == [[1, 4, 5, 6, 7, 8, 9, 2], [1, 7, 8, 9, 5, 4, 1, 1]]
    assert filled.targets_NL.tolist() == [[11, 14, 15, 16, 17, 18, 19, 12], [11, 17, 18, 19, 15, 14, 3, 3]]
    assert [short.inputs_NL.tolist(), short.targets_NL.tolist()] == [[[5, 6], [1, 1]], [[15, 16], [3, 3]]]


@pytest.mark.parametrize("document_id", [None, SOS])
def test_rows_of_one_document_stay_as_they_are(document_id: int | None) -> None:
    rows = torch.tensor([[1, 5, 6], [4, 5, 6]])
    (part,) = parts_of(rows, rows, document_id=document_id, ignore_index=IGNORED)
    assert part.inputs_NL is rows and part.targets_NL is rows


@pytest.mark.parametrize("chunk_len", [None, 7])
@pytest.mark.parametrize("few_shapes", [False, True])
def test_each_place_is_in_one_part_behind_the_start_of_its_document(chunk_len: int | None, few_shapes: bool) -> None:
    ids = torch.randint(4, 9, (9, 50), generator=torch.Generator().manual_seed(1))
    ids[torch.rand(9, 50, generator=torch.Generator().manual_seed(2)) < 0.06] = SOS
    places = torch.arange(ids.numel()).view_as(ids)
    parts = parts_of(ids, places, document_id=SOS, ignore_index=-1, chunk_len=chunk_len, few_shapes=few_shapes)
    seen = []
    for inputs, found in parts:
        for inputs_T, places_T in zip(inputs, found, strict=True):
            kept = places_T[places_T >= 0].tolist()
            if not kept:
                assert few_shapes
                continue
            assert kept == list(range(kept[0], kept[0] + len(kept)))
            assert kept[0] % 50 == 0 or ids.flatten()[kept[0]] == SOS
            assert SOS not in ids.flatten()[kept[1:]] and inputs_T[: len(kept)].equal(ids.flatten()[kept])
            seen += kept
        assert inputs.shape[0] * min(inputs.shape[1], chunk_len or 50) <= 9 * (chunk_len or 50)
        if few_shapes:
            assert inputs.shape[0] == 9 and inputs.shape[1] in (50, 25, 13, 7)
    assert sorted(seen) == list(range(ids.numel()))
    if not few_shapes and chunk_len is None:
        assert sum(part.inputs_NL.numel() for part in parts) < 1.25 * ids.numel()
