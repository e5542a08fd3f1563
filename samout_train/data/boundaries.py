"""Split rows where a document begins, so that each document starts without a state.

A row of several documents becomes one row per document. Rows of similar length form a batch of their own, filled up
at the end. A causal model does not see later tokens, and no row sees another row. So the state, the convolution and
the attention of a document begin with it, for every model, and no gradient crosses from one document to another.

The alternative, a mask in each operator, works only for mixers with such a mask.
"""

# R rows, T time, N documents, L time in a part

from typing import NamedTuple

import torch
from torch import Tensor

LENGTHS = 32  # possible lengths of parts: multiples of a 32nd of a row
HALVINGS = 4  # possible lengths of compiled parts, few because compiling is slow: a row, 1/2, 1/4, 1/8
SHARE_OF_A_CALL = 16  # the overhead of a call is the time of a batch divided by this


class Part(NamedTuple):
    """Hold documents of similar length.

    Args:
        inputs_NL: Token ids.
        targets_NL: Their targets; `ignore_index` after the end of a document.
    """

    inputs_NL: Tensor
    targets_NL: Tensor


def parts_of(
    inputs_RT: Tensor,
    targets_RT: Tensor,
    *,
    document_id: int | None,
    ignore_index: int,
    chunk_len: int | None = None,
    few_shapes: bool = False,
) -> list[Part]:
    """Return the documents of some rows as parts. No chunk of a part has more tokens than a chunk of the rows.

    If no document begins after the first token of any row, the rows are returned unchanged.

    Args:
        inputs_RT: Token ids, on the CPU if they are split.
        targets_RT: Their targets.
        document_id: The id that begins a document; None to return the rows as one part.
        ignore_index: The target that is not counted.
        chunk_len: Targets of a row in one call of the model; None for all.
        few_shapes: Whether parts may have only few different shapes, for a compiled model.
    """
    if document_id is None or not len(inputs_RT):
        return [Part(inputs_RT, targets_RT)]
    starts_RT = inputs_RT == document_id
    starts_RT[:, 0] = True
    num_rows, row_length = inputs_RT.shape
    if int(starts_RT.sum()) == num_rows:
        return [Part(inputs_RT, targets_RT)]
    first_N = starts_RT.flatten().nonzero().squeeze(1)
    length_N = first_N.diff(append=torch.tensor([inputs_RT.numel()]))
    place_N = length_N.argsort(descending=True, stable=True)
    first_N, length_N = first_N[place_N], length_N[place_N]
    if few_shapes:
        lengths = sorted({-(-row_length // 2**halving) for halving in range(HALVINGS)})
    else:
        step = -(-row_length // LENGTHS)
        lengths = [*range(step, row_length, step), row_length]
    chunk = min(chunk_len or row_length, row_length)
    parts = []
    for start, stop, length in _grouped(length_N, lengths, num_rows * row_length // SHARE_OF_A_CALL):
        most_rows = num_rows
        if not few_shapes:
            most_rows = num_rows * chunk // min(length, chunk)
        for begin in range(start, stop, most_rows):
            piece = slice(begin, min(begin + most_rows, stop))
            offset_NL = torch.arange(length).expand(piece.stop - begin, length)
            is_inside_NL = offset_NL < length_N[piece, None]
            place_NL = (first_N[piece, None] + offset_NL).where(is_inside_NL, 0)
            inputs_NL = inputs_RT.flatten()[place_NL].where(is_inside_NL, document_id)
            targets_NL = targets_RT.flatten()[place_NL].where(is_inside_NL, ignore_index)
            if few_shapes and len(inputs_NL) < num_rows:
                missing = (num_rows - len(inputs_NL), length)
                inputs_NL = torch.cat([inputs_NL, inputs_NL.new_full(missing, document_id)])
                targets_NL = torch.cat([targets_NL, targets_NL.new_full(missing, ignore_index)])
            parts.append(Part(inputs_NL, targets_NL))
    return parts


def nothing(document_id: int, ignore_index: int) -> Part:
    """Return a part of one token that is not counted, for a process that has no part left to call the model with."""
    return Part(torch.tensor([[document_id]]), torch.tensor([[ignore_index]]))


def _grouped(length_N: Tensor, lengths: list[int], tokens_of_a_call: int) -> list[tuple[int, int, int]]:
    """Return the fastest grouping of documents: start, end and filled length of each group.

    Args:
        length_N: Lengths of the documents, the longest first.
        lengths: Lengths to choose from, ascending.
        tokens_of_a_call: The overhead of a group, in tokens.
    """
    levels = [0, *lengths]
    counts = (length_N > torch.tensor(levels)[:, None]).sum(1).tolist()  # number of documents longer than a level
    cost = [0] * len(levels)  # least cost of the documents longer than a level
    top = [0] * len(levels)  # the level to which the shortest group of them is filled
    for low in range(len(levels) - 2, -1, -1):
        choices = []
        for high in range(low + 1, len(levels)):
            rows = counts[low] - counts[high]
            own = rows * levels[high] + tokens_of_a_call if rows else 0
            choices.append((cost[high] + own, high))
        cost[low], top[low] = min(choices)
    groups = []
    low = 0
    while low < len(levels) - 1:
        high = top[low]
        if counts[low] > counts[high]:
            groups.append((counts[high], counts[low], levels[high]))
        low = high
    return groups[::-1]
