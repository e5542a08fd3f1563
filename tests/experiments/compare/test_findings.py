"""What a comparison says, sentence by sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from samout_train.experiments.compare.findings import caveats, verdict
from samout_train.experiments.compare.results import comparisons_of
from samout_train.experiments.compare.runs import read_run
from samout_train.experiments.compare.tables import loss_table, pair_table, run_rows, setting_tables
from tests.support.comparison import make_comparison, make_run

MATCHED = {"match": "parameters:800k", "jobs": 1}
LOSSES = {"worse": [2.0, 2.1, 2.2], "best": [1.0, 1.1, 1.2], "near": [1.0, 1.2, 1.15]}


def test_the_verdict_says_who_is_best_what_is_noise_and_how_fair_it_was(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, LOSSES)
    assert verdict(comparison, MATCHED) == [
        "best has the lowest validation loss on shakespeare: 1.100 ± 0.100 nats per token (mean and standard deviation "
        "of 3 seeds).",
        "Within noise of it is near, by 0.017 (-0.173 to 0.206), and more than noise above it is worse, by 1.000 "
        "(1.000 to 1.000) (nats, with 95% intervals of the differences seed by seed).",
        "3 seeds resolve differences of 0.193 nats (80% power); 12 would resolve 0.055.",
        "All were trained on the same 30,720 tokens, and their parameters differ by at most 0.0%; see the "
        "caveat below.",
    ]
    assert caveats(comparison, MATCHED) == [
        "The best of 3 models is chosen by the seeds that its lead is measured on, which favours it; leaders and "
        "leader_seeds score the best on further ones."
    ]
    two = make_comparison(tmp_path / "two", {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2]})
    assert caveats(two, MATCHED) == []


def test_processors_unchecked_runs_and_partial_evaluations_are_named(tmp_path: Path) -> None:
    kept = {"processor": "AMD EPYC", "val_batches": 2}
    runs = [make_run(tmp_path, "a", 1e-3, seed, 1.0, processor=f"Xeon {seed}") for seed in (1, 2)]
    runs += [make_run(tmp_path, "b", 1e-3, seed, 1.0, **kept) for seed in (1, 2)]
    figures = json.loads((runs[-1] / "summary.json").read_text())
    del figures["leak"], figures["processor"]  # as an earlier version wrote it
    (runs[-1] / "summary.json").write_text(json.dumps(figures))
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    found = caveats(comparison, MATCHED)
    assert "Whether these are causal after training was not checked in all of their runs: b." in found
    assert "The runs were made with different values of processor: AMD EPYC, Xeon 1, Xeon 2." in found
    assert "Losses on a part of the validation split (trainer.final_eval_batches): b." in found


def test_a_model_that_is_not_causal_is_named_first_and_has_no_rank(tmp_path: Path) -> None:
    leak = {"place": 32, "position": 31, "change": 0.34, "largest_logit": 3.0}
    runs = [make_run(tmp_path, "honest", 1e-3, seed, 1.335) for seed in (1, 2)]
    cheats = [make_run(tmp_path, "peek", 1e-3, seed, 0.137, leak=leak) for seed in (1, 2)]
    (comparison,) = comparisons_of([read_run(run) for run in runs + cheats])
    first, second, *_ = verdict(comparison, MATCHED)
    assert first == (
        "peek SEES THE TOKENS THAT IT HAS TO PREDICT (later tokens change its logits at position 31 by 0.34), so its "
        "loss of 0.137 ± 0.000 nats is that of no language model and has no rank."
    )
    assert second.startswith("honest has the lowest validation loss")
    assert [row[:4] for row in loss_table(comparison, {})["rows"]][1] == [
        "peek", "0.137 ± 0.000 (0.137, 0.137)", "", "not causal"
    ]  # fmt: skip
    (alone,) = comparisons_of([read_run(run) for run in cheats])
    assert verdict(alone, {})[1:] == ["No scored run of a causal model on shakespeare has a loss."]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, label, 1e-3, 1, loss) for label, loss in (("a", 1.0), ("b", 1.1))]
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    told = " ".join(verdict(comparison, MATCHED))
    assert "One seed cannot tell whether it is below b, by 0.100 (nats)." in told and "interval" not in told


def test_a_model_with_one_seed_among_others_is_named(tmp_path: Path) -> None:
    seeds = {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1,)}
    runs = [make_run(tmp_path, label, 1e-3, seed, 1.0) for label, of in seeds.items() for seed in of]
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    assert "One seed (c) cannot tell a difference from noise." in caveats(comparison, MATCHED)


def test_the_same_figures_under_two_names_are_within_noise(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, {"v8": [1.0, 1.1, 1.2], "twin": [1.0, 1.1, 1.2]})
    assert "Within noise of it is twin, by 0.000 (0.000 to 0.000)" in verdict(comparison, {})[1]


def test_the_finer_power_of_the_leaders_is_named_first(tmp_path: Path) -> None:
    runs = []
    for label, first, further in (("a", (1.0, 1.1), (1.00, 1.02, 1.01)), ("b", (1.1, 1.4), (1.00, 1.03, 1.02))):
        runs += [make_run(tmp_path, label, 1e-3, seed, loss) for seed, loss in enumerate(first, start=1)]
        runs += [make_run(tmp_path, label, 1e-3, seed, loss) for seed, loss in enumerate(further, start=3)]
    read = [read_run(run) for run in runs]
    read = [replace(run, counts=True, leader=run.seed is not None and run.seed > 2) for run in read]
    (comparison,) = comparisons_of(read)
    lacking = [run for run in read if (run.label, run.seed) != ("a", 4)]
    assert "led on seeds 1, 2, and were then scored on seeds 3, 4, 5." in " ".join(
        caveats(comparisons_of(lacking)[0], MATCHED)
    )
    # differences 0, -0.01, -0.01: deviation 0.00577, times 5.3633 / sqrt(3); -0.1, -0.3: 0.1414 times 14.0826 / sqrt(2)
    assert verdict(comparison, MATCHED)[2] == (
        "3 seeds resolve differences of 0.018 nats among leaders, and 2 seeds 1.408 among all models (80% power)."
    )


def test_nothing_is_said_to_be_resolved_by_one_seed_or_by_models_that_failed_or_are_not_causal(tmp_path: Path) -> None:
    for folder, losses in (("one", {"a": [1.0], "b": [1.1]}), ("alone", {"a": [1.0, 1.3]})):
        runs = list(make_comparison(tmp_path / folder, losses).runs)
        runs.append(read_run(make_run(tmp_path / folder, "failed", 3e-3, 1, None, error="boom")))
        for seed in (1, 2):
            runs.append(read_run(make_run(tmp_path / folder, "peek", 3e-3, seed, 0.1 * seed, leak={"position": 3})))
        (comparison,) = comparisons_of(runs)
        assert comparison.power is None and "resolve" not in " ".join(verdict(comparison, MATCHED))


def test_each_caveat_is_reported(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "v8", 1e-3, 0, 1.0, parameters=100_000),
        make_run(tmp_path, "v8", 3e-3, 0, 1.5, parameters=100_000),
        make_run(tmp_path, "gru", 1e-3, 0, 2.0, parameters=90_000, tokens_seen=7, torch="2.11.0"),
        make_run(tmp_path, "gru", 3e-3, 0, 1.9, parameters=90_000, tokens_seen=7, torch="2.11.0"),
        make_run(tmp_path, "gru", 3e-3, 1, 1.9, parameters=90_000, tokens_seen=7, torch="2.11.0"),
        make_run(tmp_path, "gru", 3e-3, 2, None, error="the loss is NaN\nand more"),
        make_run(tmp_path, "gru", 3e-3, 3, None),
    ]
    comparison = next(of for of in comparisons_of([read_run(run) for run in runs]) if of.ranked)
    assert caveats(comparison, {}) == [
        "gru-lr0.003-seed2 of gru is FAILED: the loss is NaN.",
        "gru-lr0.003-seed3 of gru is stopped.",
        "Sizes were not matched: from 90,000 to 100,000 parameters.",
        "v8: the best learning rate, 0.001, is the smallest of those tried; a smaller one may be better.",
        "v8: the learning rate was selected on a run that is also scored, which biases the result; add seeds.",
        "gru: the best learning rate, 0.003, is the largest of those tried; a larger one may be better.",
        "One seed cannot tell a difference from noise.",
        "The models have different seeds; differences are taken on the seeds that both have.",
        "The models were not trained on the same number of tokens.",
        "The runs were made with different values of torch: 2.11.0, 2.13.0.",
    ]
    sentences = verdict(comparison, {})
    assert sentences[1].startswith("Without a seed in common it is unknown whether it is below gru")
    assert sentences[2].startswith("They were NOT trained on the same tokens (7, 30,720)")
    assert sentences[2].endswith("; see the 10 caveats below.")


def test_where_a_seed_is_missing_models_are_ranked_by_those_that_all_have(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path / "a", {"a": [2.0, 2.01], "b": [1.9, 1.911, 2.3]})
    assert [one.label for one in comparison.ranked] == ["b", "a"]
    sentences = verdict(comparison, MATCHED)
    assert sentences[0].startswith("b has the lowest validation loss")
    assert "More than noise above it is a, by 0.099 (0.093 to 0.106)" in sentences[1]
    assert "not on the same ones" in sentences[2]
    three = {"a": [1.0, 1.0, 5.0], "b": [1.1, 1.1], "c": [3.0]}  # on seed 1, a is the best
    assert [one.label for one in make_comparison(tmp_path / "b", three).ranked] == ["a", "b", "c"]


def test_a_loss_that_is_no_number_and_a_run_that_is_there_twice_are_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", 1e-3, seed, 1.0 + seed) for seed in (1, 2, 3)]
    runs += [make_run(tmp_path, "a", 1e-3, 4, 1.0, val_loss_nats=None)]
    runs += [make_run(tmp_path / "again", "a", 1e-3, 1, 9.0)]
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    assert caveats(comparison, MATCHED) == [
        "a-lr0.001-seed4 of a ended with a loss that is not a number, and is not scored.",
        "a has several runs with the same learning rate and seed, of which one is scored.",
    ]


def test_seconds_that_were_shared_or_missed_are_told(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, LOSSES, train_seconds=66.0)
    found = caveats(comparison, {"match": "seconds:60", "jobs": 2})
    assert [line.split(":")[0] for line in found[:3]] == [
        f"{label} trained for 66 s (+10%)" for label in ("best", "near", "worse")
    ]
    assert found[-1].startswith("Up to 2 runs shared the machine")


def test_scored_runs_of_a_model_at_several_sizes_are_told(tmp_path: Path) -> None:
    sizes = {"a": [7000, 7000], "b": [7000, 7100]}
    runs = [
        make_run(tmp_path, label, 1e-3, seed, 1.0, parameters=size)
        for label, of_seeds in sizes.items()
        for seed, size in enumerate(of_seeds)
    ]
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    found = [caveat for caveat in caveats(comparison, {"match": "seconds:60"}) if "differ in size" in caveat]
    assert found == ["The scored runs of b differ in size: from 7,000 to 7,100 parameters."]


def test_operations_that_miss_their_budget_are_told(tmp_path: Path) -> None:
    runs = []
    for label, steps in (("a", 100), ("b", 99), ("c", 120)):
        run = read_run(make_run(tmp_path, label, 1e-3, 1, 1.0, steps=steps, training_flops_per_token=1e6))
        runs.append(replace(run, config={**run.config, "data": {"batch_size": 2, "seq_len": 50}}))
    (comparison,) = comparisons_of(runs)
    found = [text for text in caveats(comparison, {"train_flops": 1e10}) if "against train_flops" in text]
    assert found == ["c was trained with 1.2e+10 FLOPs (+20% against train_flops)."]


def test_small_losses_are_shown_with_the_digits_that_they_need(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, {"a": [1.0e-4, 1.2e-4, 1.1e-4], "b": [5.0e-4, 5.3e-4, 5.1e-4]})
    assert "a has the lowest validation loss on shakespeare: 1.1e-04 ± 1.0e-05 nats" in verdict(comparison, MATCHED)[0]
    assert "b, by 4.0e-04 (" in verdict(comparison, MATCHED)[1]


def test_models_with_one_rate_or_unlike_settings_are_no_fair_comparison(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, label, 1e-3, seed, 1.0) for label in ("a", "b") for seed in (1, 2)]
    config = runs[0] / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace('"clip_grad_norm": 1.0', '"clip_grad_norm": 5.0'))
    (comparison,) = comparisons_of([read_run(run) for run in runs])
    assert caveats(comparison, {"match": "flops:5M"}) == [
        "Each model was tried with one learning rate, so this may compare learning rates more than models.",
        "With 2 seeds, the intervals are very wide.",
        "The runs differ in settings other than the model: trainer.clip_grad_norm.",
    ]


def test_where_nothing_came_to_a_loss_that_is_said(tmp_path: Path) -> None:
    (comparison,) = comparisons_of([read_run(make_run(tmp_path, "a", 1e-3, 0, None, error="boom"))])
    assert verdict(comparison, {}) == ["No scored run on shakespeare has a loss."]
    assert loss_table(comparison, {})["rows"][0][1] == "no scored run has a loss"


def test_runs_that_choose_are_counted_while_none_is_scored(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, label, rate, 0, 1.0) for label in "ab" for rate in (1e-3, 3e-3)]
    runs.append(make_run(tmp_path, "b", 1e-2, 0, None))
    (comparison,) = comparisons_of([replace(read_run(run), counts=False) for run in runs])
    assert verdict(comparison, {}) == [
        "No scored run on shakespeare has a loss; runs that choose learning rates or settings and are done: 4."
    ]


def test_the_tables_hold_the_figures(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, LOSSES)
    speeds = {"best": {64: 12_345.0, 256: 1.0}}
    first, second, third = loss_table(comparison, speeds)["rows"]
    assert first[:4] == ["best", "1.100 ± 0.100 (1.000, 1.100, 1.200)", "", "best"]
    assert first[4:] == ["2,688 (front)", "0.003", "800,000", "12,345", "4,800,000"]
    assert second[2:4] == ["0.017 (-0.173 to 0.206)", "within noise"] and second[7] == "" and second[4] == "2,688"
    assert third[2:4] == ["1.000 (1.000 to 1.000)", "more than noise"]
    pairs = pair_table(comparison)
    assert pairs["head"] == ["", "best", "near", "worse"]
    assert [[cell["beyond"] for cell in row[1:]] for row in pairs["rows"]] == [
        [False, False, True],
        [False, False, True],
        [True, True, False],
    ]
    assert len(run_rows(comparison)) == 18 and run_rows(comparison)[0]["loss"] == "1.2000"
    settings = setting_tables(comparison)
    assert ("optimizer.weight_decay", "0.1") in settings["common"]
    assert [row[0] for row in settings["differing"]] == ["model._target_"]
    assert pytest.approx(1.0) == comparison.results[2].mean - 1.1  # type: ignore[operator]
