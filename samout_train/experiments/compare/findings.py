"""Put the findings of a comparison into words: which model is better, whether that is more than noise, and caveats."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from samout_train.checkpoint import scalars
from samout_train.experiments.compare.answers import most_right
from samout_train.experiments.compare.intervals import CONFIDENCE, POWER, Difference
from samout_train.experiments.compare.matching import TOLERANCE, Budget
from samout_train.experiments.compare.results import CandidateResult, Comparison, difference
from samout_train.experiments.compare.scaling import parameters_of, steepest, training_flops_of
from samout_train.experiments.compare.screening import Screening, screening_caveat

FEW_SEEDS = 3
MORE_SEEDS = 4  # times as many seeds, to show what they would resolve
MOST_NAMED = 6  # differing settings in one sentence
# The settings that decide which tokens a compared run sees, and in which arithmetic it is trained.
ALIKE = ("data", "trainer", "precision", "schedule")
MACHINE = {"device": 12, "processor": 60, "torch": 12, "commit": 12}  # characters that tell values apart
SMALLEST_SHOWN = 0.001  # nats, with three decimals
SHARED = "Up to {} runs shared the machine, so their times are longer than those of a run that has it to itself."
BEYOND = {"largest": "larger", "smallest": "smaller"}
Asked = Mapping[str, Any]


def verdict(comparison: Comparison, asked: Asked) -> list[str]:
    """Return sentences: the best model, how far behind others are, what seeds resolve, and if all saw the same tokens.

    With further sizes, a sentence says whose loss falls fastest; for each task, one says which model has the most right
    answers. A single seed resolves nothing, so it gets no sentence. The first sentences name the models that are not
    causal: these have no rank, whatever their loss.

    Args:
        comparison: Models on the same data.
        asked: The request as far as it is known: `match`, the budget as typed, and `jobs`, the runs at a time.
    """
    sentences = [_not_causal(one) for one in comparison.not_causal]
    if not comparison.ranked:
        of = "scored run" if not sentences else "scored run of a causal model"
        choosing = sum(run.counts is False and run.outcome.state == "done" for run in comparison.runs)
        done = ""
        if choosing:
            done = f"; runs that choose learning rates or settings and are done: {choosing}"
        return [*sentences, f"No {of} on {comparison.data} has a loss{done}."]
    best, *others = comparison.ranked
    many = "one seed"
    if len(best.losses) > 1:
        many = f"mean and standard deviation of {len(best.losses)} seeds"
    loss = f"{mean_and_spread(best)} nats per token ({many})"
    sentences += [f"{best.label} has the lowest validation loss on {comparison.data}: {loss}."]
    last = _tokens(comparison)
    if others:
        sentences += [_behind(best, others), *_resolved(comparison)]
        last += _sizes(comparison)
    sentences += steepest(comparison)
    for task in (comparison, *comparison.tasks):
        sentences += most_right(task)
    num_caveats = len(caveats(comparison, asked))
    if num_caveats == 1:
        last += "; see the caveat below"
    elif num_caveats:
        last += f"; see the {num_caveats} caveats below"
    return [*sentences, f"{last}."]


def nats(value: float) -> str:
    """Return a loss with three decimals, or in scientific notation if these would show 0."""
    if value == 0 or abs(value) >= SMALLEST_SHOWN:
        return f"{value:.3f}"
    return f"{value:.1e}"


def mean_and_spread(one: CandidateResult) -> str:
    """Return the mean and the sample standard deviation of two or more seeds, as `1.612 ± 0.004`."""
    if one.mean is None:
        return ""
    if one.spread is None:
        return nats(one.mean)
    return f"{nats(one.mean)} ± {nats(one.spread)}"


def in_words(found: Difference | None) -> str:
    """Return `within noise`, `more than noise`, or why that is unknown."""
    if found is None:
        return "unknown: no seed in common"
    if found.within_noise is None:
        return "unknown: one seed"
    if found.within_noise:
        return "within noise"
    return "more than noise"


def interval(found: Difference) -> str:
    """Return a difference and its interval, as `0.033 (0.015 to 0.051)`."""
    if found.low is None or found.high is None:
        return nats(found.mean)
    return f"{nats(found.mean)} ({nats(found.low)} to {nats(found.high)})"


def caveats(comparison: Comparison, asked: Asked) -> list[str]:
    """Return what a reader needs to know before trusting the result, one sentence each.

    Args:
        comparison: Models on the same data.
        asked: The request as far as it is known.
    """
    ran = comparison.ranked
    found = [
        *_unfinished(comparison),
        *(sentence for one in comparison.beside for sentence in _unfinished(one)),
        *_outside(comparison),
        *_off_budget(ran, asked.get("match")),
        *_unlike_sizes(ran),
        *_off_operations(ran, asked.get("train_flops")),
        *_screened(comparison, asked),
        *_rates(ran, extended=bool(asked.get("extend_lr"))),
        *_chosen_settings(ran),
        *_seeds(ran),
        *_unchecked(comparison),
        *_unlike(ran, asked.get("train_flops")),
        *_partly_evaluated(ran),
    ]
    jobs = asked.get("jobs") or 1
    if jobs > 1:
        found.append(SHARED.format(jobs))
    return found


def _outside(comparison: Comparison) -> Iterable[str]:
    for one in comparison.results:
        if one.outside:
            names = ", ".join(run.run_dir.name for run in one.outside)
            yield f"{one.label}: not scored, because other runs of it belong to a comparison and these do not: {names}."


def _not_causal(one: CandidateResult) -> str:
    leak, loss = one.leak or {}, ""
    if one.mean is not None:
        loss = f", so its loss of {mean_and_spread(one)} nats is that of no language model and has no rank"
    change = f"later tokens change its logits at position {leak.get('position')} by {leak.get('change', 0.0):.2g}"
    return f"{one.label} SEES THE TOKENS THAT IT HAS TO PREDICT ({change}){loss}."


def _behind(best: CandidateResult, others: Sequence[CandidateResult]) -> str:
    by_word: dict[str, list[str]] = {}
    for other in others:
        found = difference(other, best)
        word, shown = in_words(found), other.label
        if found is not None:
            shown = f"{other.label}, by {interval(found)}"
            if found.within_noise is False and found.mean < 0:
                word = "below"
        by_word.setdefault(word, []).append(shown)
    parts = []
    for word, text in (
        ("within noise", "within noise of it"),
        ("more than noise", "more than noise above it"),
        ("below", "on the seeds that both have, more than noise BELOW it"),
    ):
        names = by_word.get(word)
        if names:
            parts.append(f"{text} {_are(names)} {'; '.join(names)}")
    for word, text in (
        ("unknown: one seed", "one seed cannot tell whether it is below"),
        ("unknown: no seed in common", "without a seed in common it is unknown whether it is below"),
    ):
        names = by_word.get(word)
        if names:
            parts.append(f"{text} {'; '.join(names)}")
    text, unit = ", and ".join(parts), "nats"
    if by_word.keys() - {"unknown: one seed", "unknown: no seed in common"}:
        unit += f", with {CONFIDENCE:.0%} intervals of the differences seed by seed"
    return f"{text[0].upper()}{text[1:]} ({unit})."


def _resolved(comparison: Comparison) -> Iterable[str]:
    power, of_leaders = comparison.power, comparison.power_of_leaders
    if of_leaders is not None:
        text = f"{of_leaders.num_seeds} seeds resolve differences of {nats(of_leaders.resolvable())} nats among leaders"
        if power is not None:
            text += f", and {power.num_seeds} seeds {nats(power.resolvable())} among all models"
        yield f"{text} ({POWER:.0%} power)."
    elif power is not None:
        more = MORE_SEEDS * power.num_seeds
        yield (
            f"{power.num_seeds} seeds resolve differences of {nats(power.resolvable())} nats ({POWER:.0%} power); "
            f"{more} would resolve {nats(power.resolvable(more))}."
        )


def _are(names: Sequence[str]) -> str:
    if len(names) == 1:
        return "is"
    return "are"


def _tokens(comparison: Comparison) -> str:
    ran = comparison.ranked
    tokens = {round(count) for count in _figures(ran, "tokens_seen")}
    counts = ", ".join(f"{count:,}" for count in sorted(tokens))
    if len(ran) == 1:
        return f"It was trained on {counts} tokens"
    if len(tokens) != 1:
        return f"They were NOT trained on the same tokens ({counts})"
    others = any(key.startswith(("data", "trainer")) and key != "trainer.ema" for key in _differing(ran))
    if not others and len({tuple(one.first_losses) for one in ran}) == 1:
        return f"All were trained on the same {counts} tokens"
    return f"All were trained on {counts} tokens each, but not on the same ones"


def _figures(ran: Sequence[CandidateResult], key: str) -> list[float]:
    """Return a figure of the models that have it."""
    found = []
    for one in ran:
        value = one.figure(key)
        if value is not None:
            found.append(value)
    return found


def _sizes(comparison: Comparison) -> str:
    sizes = _figures(comparison.ranked, "parameters")
    if not sizes:
        return ""
    share = max(sizes) / min(sizes) - 1
    return f", and their parameters differ by at most {share:.1%}"


def _unfinished(comparison: Comparison) -> Iterable[str]:
    waiting = sum(run.outcome.state == "waiting" for run in comparison.runs)
    if waiting:
        yield f"Runs that are not yet run: {waiting}."
    for one in comparison.results:
        for run in one.missing:
            if run.outcome.state == "waiting":
                continue
            error = ""
            if run.outcome.error:
                error = f": {run.outcome.error}"
            yield f"{run.run_dir.name} of {one.label} is {run.outcome.state}{error}."
        places = []
        for run in one.runs:
            if run.loss is not None:
                places.append((run.rate, run.seed, str(run.settings)))
            elif run.outcome.state == "done":
                yield f"{run.run_dir.name} of {one.label} ended with a loss that is not a number, and is not scored."
        if len(set(places)) < len(places):
            yield f"{one.label} has several runs with the same learning rate and seed, of which one is scored."


def _screened(comparison: Comparison, asked: Asked) -> Iterable[str]:
    screening = Screening.of_record(asked)
    if screening is not None and comparison.screening_losses:
        labels = [one.label for one in comparison.not_causal]
        in_full = [one.label for one in comparison.results if one.losses]
        yield screening_caveat(screening, comparison.screening_losses, comparison.screening_states, labels, in_full)


def _rates(ran: Sequence[CandidateResult], *, extended: bool) -> Iterable[str]:
    for one in ran:
        if one.edge and one.best_rate is not None:
            yield (
                f"{one.label}: the best learning rate, {one.best_rate:g}, is the {one.edge} of those tried; a "
                f"{BEYOND[one.edge]} one may be better."
            )
        if one.chosen_and_counted:
            yield (
                f"{one.label}: the learning rate was selected on a run that is also scored, which biases the result; "
                "add seeds."
            )
    tried = {len(one.rates) for one in ran}
    if len(ran) > 1 and tried == {1}:
        yield "Each model was tried with one learning rate, so this may compare learning rates more than models."
    elif len(tried) > 1 and extended:
        yield "Models whose best learning rate was at the edge of the grid were tried with more of them."
    elif len(tried) > 1:
        yield "Some models were tried with more learning rates than others."


def _seeds(ran: Sequence[CandidateResult]) -> Iterable[str]:
    fewest = min((len(one.losses) for one in ran), default=FEW_SEEDS)
    if fewest == 1 and len(ran) > 1:
        single = [one.label for one in ran if len(one.losses) == 1]
        of = f" ({', '.join(single)})" if len(single) < len(ran) else ""
        yield f"One seed{of} cannot tell a difference from noise."
    elif fewest < FEW_SEEDS and len(ran) > 1:
        yield f"With {fewest} seeds, the intervals are very wide."
    leaders = [one for one in ran if one.leads]
    if not leaders and len(ran) > 2 and fewest > 1:
        yield (
            f"The best of {len(ran)} models is chosen by the seeds that its lead is measured on, which favours it; "
            "leaders and leader_seeds score the best on further ones."
        )
    if leaders:
        first = listed(sorted({seed for one in leaders for seed in one.first_losses}))
        further = listed(sorted({seed for one in leaders for seed in one.losses}))
        yield (
            f"{', '.join(one.label for one in leaders)} led on {first}, and were then scored on {further}. "
            "Nothing was chosen on these: the losses of the leaders, and the differences among them, are of these "
            f"alone. Differences from other models are of {first}, which favours the leaders."
        )
    kinds = ([one.first_losses for one in ran], [one.losses for one in leaders])
    if any(len(set(map(tuple, losses))) > 1 for losses in kinds):
        yield "The models have different seeds; differences are taken on the seeds that both have."


def _unchecked(comparison: Comparison) -> Iterable[str]:
    """Yield which models have runs from before trained models were checked; these may see what they have to predict."""
    unknown = [
        one.label
        for one in comparison.results
        if any("leak" not in (run.summary or {"leak": None}) for run in one.runs)
    ]
    if unknown:
        yield f"Whether these are causal after training was not checked in all of their runs: {', '.join(unknown)}."


def listed(seeds: Sequence[int]) -> str:
    """Return `seed 1`, or `seeds 1, 2, 3`."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(map(str, seeds)) or 'unknown'}"


def _chosen_settings(ran: Sequence[CandidateResult]) -> Iterable[str]:
    keys = sorted(set().union(*(one.best_settings for one in ran)))
    for key in keys:
        lacking = [one.label for one in ran if key not in one.best_settings]
        if lacking:
            yield f"{key} was not chosen for {', '.join(lacking)}: no such setting."
        for edge, beyond in BEYOND.items():
            at_edge = [one.label for one in ran if one.settings_at_edge.get(key) == edge]
            if at_edge:
                labels = ", ".join(at_edge)
                yield f"The best {key} is the {edge} of those tried for {labels}; a {beyond} one may be better."


def _unlike(ran: Sequence[CandidateResult], operations: float | None) -> Iterable[str]:
    tokens = {one.figure("tokens_seen") for one in ran}
    if operations is not None:
        yield f"Each model was trained with {operations:.3g} FLOPs, so that their steps and tokens differ."
    elif len(tokens) > 1:
        yield "The models were not trained on the same number of tokens."
    differing = _differing(ran)
    if differing:
        more = ""
        if len(differing) > MOST_NAMED:
            more = f" and {len(differing) - MOST_NAMED} more"
        yield f"The runs differ in settings other than the model: {', '.join(differing[:MOST_NAMED])}{more}."
    for key, characters in MACHINE.items():
        values = set()
        for one in ran:
            for run in one.counted:
                if run.summary is not None and (key != "processor" or key in run.summary):  # older runs lack it
                    values.add(str(run.summary.get(key))[:characters])
        if len(values) > 1:
            yield f"The runs were made with different values of {key}: {', '.join(sorted(values))}."


def _partly_evaluated(ran: Sequence[CandidateResult]) -> Iterable[str]:
    partly = [one.label for one in ran if any("val_batches" in (run.summary or {}) for run in one.counted)]
    if partly:
        yield f"Losses on a part of the validation split (trainer.final_eval_batches): {', '.join(partly)}."


def _differing(ran: Sequence[CandidateResult]) -> list[str]:
    """Return the settings, other than the model, that affect training and differ between runs."""
    settings = []
    for one in ran:
        for run in one.counted:
            if run.config:
                settings.append(scalars({key: run.config.get(key) for key in ALIKE}))
    found = []
    for key in sorted(set().union(*settings)):
        values = {str(of_run.get(key)) for of_run in settings}
        if len(values) > 1:
            found.append(key)
    return found


def _unlike_sizes(ran: Sequence[CandidateResult]) -> Iterable[str]:
    """Yield the models whose scored runs have different sizes."""
    for one in ran:
        sizes = {size for size in map(parameters_of, one.counted) if size is not None}
        if len(sizes) > 1:
            text = f"from {min(sizes):,.0f} to {max(sizes):,.0f} parameters"
            yield f"The scored runs of {one.label} differ in size: {text}."


def _off_operations(ran: Sequence[CandidateResult], operations: float | None) -> Iterable[str]:
    """Yield the models whose scored runs took more or fewer FLOPs than `train_flops`."""
    if operations is None:
        return
    for one in ran:
        off = [taken / operations - 1 for taken in map(training_flops_of, one.counted) if taken is not None]
        largest = max(off, key=abs, default=0.0)
        if abs(largest) > TOLERANCE:
            taken = (1 + largest) * operations
            yield f"{one.label} was trained with {taken:.3g} FLOPs ({largest:+.0%} against train_flops)."


def _off_budget(ran: Sequence[CandidateResult], match: str | None) -> Iterable[str]:
    """Yield sizes that differ by more than matching allows, and training times that miss the budget."""
    if match is None:
        sizes = _figures(ran, "parameters")
        if sizes and max(sizes) / min(sizes) > 1 + 2 * TOLERANCE:
            yield f"Sizes were not matched: from {min(sizes):,.0f} to {max(sizes):,.0f} parameters."
        return
    budget = Budget.of(match)
    if budget.kind != "seconds":
        return
    for one in ran:
        seconds = one.figure("train_seconds")
        if seconds is not None and abs(seconds / budget.amount - 1) > TOLERANCE:
            off = f"{seconds / budget.amount - 1:+.0%}"
            yield f"{one.label} trained for {seconds:,.4g} s ({off}): its steps did not take the time measured before."
