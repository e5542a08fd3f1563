"""Broken mixers, each caught by the right row."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from samout_train.models.samout import SamOut
from samout_train.models.samout_v8 import MaxStateSuper
from samout_train.ops.max_scan import max_scan
from samout_train.verification import Row, verify


class Broken(MaxStateSuper):
    """V8's mixer with a maximum that does something wrong."""

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        a_BTD, b_BTD, c_BTD, d_BTD = self.projection(x_BTD).chunk(4, dim=-1)
        m_BTD, state_BD = self.maximum(d_BTD, state_BD)
        return ((a_BTD + b_BTD) * m_BTD + c_BTD) * m_BTD, state_BD

    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        return max_scan(d_BTD, state_BD)


class PeeksAtTheNext(Broken):
    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        m_BTD, state_BD = max_scan(d_BTD, state_BD)
        return torch.cat([m_BTD[:, 1:], m_BTD[:, -1:]], dim=1), state_BD


class LagsByOne(Broken):
    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        m_BTD, state_BD = max_scan(d_BTD, state_BD)
        return torch.cat([torch.zeros_like(m_BTD[:, :1]), m_BTD[:, :-1]], dim=1), state_BD


class IgnoresItsState(Broken):
    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        return max_scan(d_BTD, None)


class MixesTheBatch(Broken):
    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        m_BTD, state_BD = max_scan(d_BTD, state_BD)
        return m_BTD + 0.1 * m_BTD.mean(0, keepdim=True), state_BD


class LeaksAtChunkBorders(Broken):
    """As a kernel would that loads a tile too far: the last of 64 sees the first of the next 64."""

    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        m_BTD, state_BD = max_scan(d_BTD, state_BD)
        peeked_BTD = torch.maximum(m_BTD[:, 63:-1:64], d_BTD[:, 64::64])
        m_BTD = m_BTD.clone()
        m_BTD[:, 63:-1:64] = peeked_BTD
        return m_BTD, state_BD


class ForgetsAGradient(Broken):
    def maximum(self, d_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        m_BTD, state_BD = max_scan(d_BTD, state_BD)
        return m_BTD.detach() + 0.5 * (m_BTD - m_BTD.detach()), state_BD


def rows(mixer: Callable[..., nn.Module], *, vocab_size: int = 37, pad_id: int | None = 3) -> list[Row]:
    def build(is_tiny: bool) -> nn.Module:
        return SamOut(
            vocab_size=vocab_size,
            pad_id=pad_id,
            hidden_size=16 if is_tiny else 32,
            num_heads=2,
            num_layers=2,
            ffn_size=None,
            ffn_share=1.0,
            dropout=0.0,
            tied_head=False,
            init="small",
            mixer=mixer,
        )

    return list(verify(build, vocab_size=vocab_size, pad_id=pad_id, device=torch.device("cpu"), compiles=False))


def test_the_unbroken_mixer_passes_every_row() -> None:
    assert [row for row in rows(Broken) if not row.passed] == []


def test_a_vocabulary_of_four_ids_without_padding_is_enough() -> None:
    failed = [row.name for row in rows(Broken, vocab_size=4, pad_id=None) if not row.passed]
    assert not [name for name in failed if not name.startswith("learns one batch")]


@pytest.mark.parametrize(
    ("mixer", "caught_by"),
    [
        (PeeksAtTheNext, "causality: a token changes nothing before it"),
        (LagsByOne, "fp32: step by step, from a carried state, as the whole"),
        (IgnoresItsState, "fp32: in chunks of 7, from a carried state, as the whole"),
        (MixesTheBatch, "a row is the same in any batch"),
        (LeaksAtChunkBorders, "causality: a token changes nothing before it"),
        (ForgetsAGradient, "gradient as float64 finite differences"),
    ],
)
def test_a_broken_mixer_is_caught_by_the_right_row(mixer: type[nn.Module], caught_by: str) -> None:
    failed = [row.name for row in rows(mixer) if not row.passed]
    assert caught_by in failed
    if mixer is LeaksAtChunkBorders:
        assert not any(name.startswith("a row is the same") for name in failed)


def test_a_value_that_is_no_number_never_passes() -> None:
    assert not Row("x", float("nan"), 1.0).passed
