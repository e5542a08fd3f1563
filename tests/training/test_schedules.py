"""Factors against lists worked out by hand."""

import math

import pytest

from samout_train.training.schedules import Constant, Cosine, Limits, Progress, Schedule, WarmupStableDecay, first_limit


def factors(schedule: Schedule, total: int) -> list[float]:
    limits = Limits(total, None)
    return [schedule(limits.progress(step, 0.0)) for step in range(1, total + 1)]


def test_constant_is_one() -> None:
    assert factors(Constant(), 3) == [1, 1, 1]


def test_cosine_warms_up_then_falls_to_its_share_at_the_last_step() -> None:
    got = factors(Cosine(warmup_steps=2, final_share=0.1), 20)
    assert got[:2] == [0.5, 1.0]
    assert got[2:] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * done / 18)) for done in range(1, 19)])
    assert got[-1] == pytest.approx(0.1)


def test_warm_up_takes_a_tenth_of_a_short_run() -> None:
    assert factors(Cosine(warmup_steps=100, final_share=0.1), 30)[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors(Cosine(warmup_steps=100, final_share=0.1), 2000)[98:101] == pytest.approx([0.99, 1, 1], abs=1e-5)


@pytest.mark.parametrize("total", [1, 2, 9, 10, 11])
def test_any_number_of_steps_is_accepted(total: int) -> None:
    for schedule in (Cosine(warmup_steps=100, final_share=0.1), _wsd(decay_share=0.2)):
        got = factors(schedule, total)
        assert all(0 < factor <= 1 for factor in got) and got[-1] == pytest.approx(0.1)


def _wsd(*, decay_share: float) -> WarmupStableDecay:
    return WarmupStableDecay(warmup_steps=1, decay_share=decay_share, final_share=0.1)


def test_wsd_is_stable_until_its_decay() -> None:
    got = factors(_wsd(decay_share=0.4), 10)
    assert got == pytest.approx([1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])


def test_wsd_decays_by_time_where_only_time_limits_the_run() -> None:
    limits = Limits(None, 100.0)
    wsd = WarmupStableDecay(warmup_steps=4, decay_share=0.5, final_share=0.0)
    assert [wsd(limits.progress(step, seconds)) for step, seconds in ((2, 1), (9, 50), (20, 75), (30, 120))] == [
        0.5,
        1.0,
        0.5,
        0.0,
    ]


def test_cosine_without_a_number_of_steps_says_what_to_use() -> None:
    with pytest.raises(ValueError, match="constant or wsd"):
        Cosine(warmup_steps=1, final_share=0.1)(Progress(1, None, 0.0))


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((None, None, None), Limits(7, None)),
        ((3, None, None), Limits(3, None)),
        ((None, 40, None), Limits(5, None)),  # 40 rows in batches of 8
        ((None, 41, None), Limits(6, None)),
        ((9, 40, 2.0), Limits(5, 2.0)),
        ((None, None, 2.0), Limits(None, 2.0)),
    ],
)
def test_limits_that_are_set_replace_the_budget(limits: tuple[int, float, float], wanted: Limits) -> None:
    assert first_limit(*limits, batch_size=8, budget_steps=7) == wanted


def test_the_nearest_limit_is_the_progress() -> None:
    assert Limits(100, 10.0).progress(20, 5.0) == Progress(20, 100, 0.5)
    assert Limits(100, None).progress(100, 5.0).share == 1
    assert Limits(None, 10.0).progress(7, 20.0) == Progress(7, None, 1.0)
