"""An evaluator of a model on rows, on the CPU in float32."""

import torch
from torch import nn

from samout_train.data import Rows, Source
from samout_train.evaluation import Evaluator


def evaluator_of(
    model: nn.Module,
    rows: Rows,
    *,
    ignore_index: int = 3,
    chunk_len: int | None = None,
    document_id: int | None = None,
) -> Evaluator:
    source = Source(
        vocab_size=40,
        pad_id=None,
        ignore_index=ignore_index,
        train=rows,
        validation=rows,
        vocabulary=None,
        floor_nats=None,
        description={},
        document_id=document_id,
    )
    return Evaluator(model, source, torch.device("cpu"), "fp32", chunk_len)
