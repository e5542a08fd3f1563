"""Put the findings of a comparison into words: which model is better, whether that is more than noise, and caveats."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from samout_train.checkpoint import scalars
from samout_train.experiments.compare.matching import TOLERANCE, Budget
from samout_train.experiments.compare.results import CONFIDENCE, CandidateResult, Comparison, Difference, difference
from samout_train.experiments.compare.screening import Screening, screening_caveat

FEW_SEEDS = 3
MOST_NAMED = 6  # differing settings in one sentence
# Of a run that is compared, what decides about the tokens that it sees and the arithmetic that it is trained in.
ALIKE = ("data", "trainer", "precision", "schedule")
MACHINE = ("device", "torch", "commit")
LONGEST_VALUE = 12  # characters, which tell commits apart
SMALLEST_SHOWN = 0.001  # nats, with three decimals
SHARED = "The runs were made {} at a time, so that their seconds are not those of a run that has the machine to itself."
Asked = Mapping[str, Any]


def verdict(comparison: Comparison, asked: Asked) -> list[str]:
    """Return three sentences: the best, how far the others are behind it, and how far it is fair.

    Args:
        comparison: Models on the same data.
        asked: What is known of the request: `match`, the budget as typed, and `jobs`, how many ran at a time.
    """
    if not comparison.ranked:
        return [f"Nothing is known of {comparison.data}: no run came to a loss."]
    best, *others = comparison.ranked
    many = "one seed"
    if len(best.losses) > 1:
        many = f"mean and standard deviation of {len(best.losses)} seeds"
    loss = f"{mean_and_spread(best)} nats a token ({many})"
    sentences = [f"{best.label} has the lowest validation loss on {comparison.data}: {loss}."]
    last = _tokens(comparison)
    if others:
        sentences.append(_behind(best, others))
        last += _sizes(comparison)
    against = caveats(comparison, asked)
    if against:
        last += f"; what speaks against it ({len(against)}) stands below"
    return [*sentences, f"{last}."]


def nats(value: float) -> str:
    """With three decimals, or as many as a small one needs to be seen."""
    if value == 0 or abs(value) >= SMALLEST_SHOWN:
        return f"{value:.3f}"
    return f"{value:.1e}"


def mean_and_spread(one: CandidateResult) -> str:
    """`1.612 ± 0.004`: the mean, and the standard deviation of a sample where there are two or more."""
    if one.mean is None:
        return ""
    if one.spread is None:
        return nats(one.mean)
    return f"{nats(one.mean)} ± {nats(one.spread)}"


def in_words(found: Difference | None) -> str:
    """`within noise`, `more than noise`, or why that is not known."""
    if found is None:
        return "not known: no seed in common"
    return {None: "not known: one seed", True: "within noise", False: "more than noise"}[found.within_noise]


def interval(found: Difference) -> str:
    """`0.033 (0.015 to 0.051)`."""
    if found.low is None or found.high is None:
        return nats(found.mean)
    return f"{nats(found.mean)} ({nats(found.low)} to {nats(found.high)})"


def caveats(comparison: Comparison, asked: Asked) -> list[str]:
    """Return what a reader has to know before believing it, a sentence each.

    Args:
        comparison: Models on the same data.
        asked: What is known of the request.
    """
    ran = comparison.ranked
    found = [
        *_unfinished(comparison),
        *_off_budget(ran, asked.get("match")),
        *_screened(comparison, asked),
        *_rates(ran),
        *_seeds(ran),
        *_unlike(ran),
    ]
    if (asked.get("jobs") or 1) > 1:
        found.append(SHARED.format(asked["jobs"]))
    return found


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
        if names := by_word.get(word):
            parts.append(f"{text} {_are(names)} {'; '.join(names)}")
    for word, text in (
        ("not known: one seed", "one seed cannot tell whether it is below"),
        ("not known: no seed in common", "without a seed in common it is not known whether it is below"),
    ):
        if names := by_word.get(word):
            parts.append(f"{text} {'; '.join(names)}")
    text = ", and ".join(parts)
    return f"{text[0].upper()}{text[1:]} (nats, with {CONFIDENCE:.0%} intervals of the differences seed by seed)."


def _are(names: Sequence[str]) -> str:
    if len(names) == 1:
        return "is"
    return "are"


def _tokens(comparison: Comparison) -> str:
    ran = comparison.ranked
    tokens = {round(count) for one in ran if (count := one.figure("tokens_seen")) is not None}
    counts = _list(f"{count:,}" for count in sorted(tokens))
    if len(ran) == 1:
        return f"It was trained on {counts} tokens"
    if len(tokens) != 1:
        return f"They were NOT trained on the same tokens ({counts})"
    alike = not any(key.startswith(("data", "trainer")) for key in _differing(ran))
    if alike and len({tuple(one.losses) for one in ran}) == 1:
        return f"All were trained on the same {counts} tokens"
    return f"All were trained on {counts} tokens each, but not on the same ones"


def _sizes(comparison: Comparison) -> str:
    sizes = [size for one in comparison.ranked if (size := one.figure("parameters")) is not None]
    if not sizes:
        return ""
    share = max(sizes) / min(sizes) - 1
    return f", and their parameters are within {share:.1%} of each other"


def _unfinished(comparison: Comparison) -> Iterable[str]:
    for one in comparison.results:
        for run in one.missing:
            error = ""
            if run.outcome.error:
                error = f": {run.outcome.error}"
            yield f"{run.run_dir.name} of {one.label} is {run.outcome.state}{error}."
        for run in one.runs:
            if run.outcome.state == "done" and run.loss is None:
                yield f"{run.run_dir.name} of {one.label} ended with a loss that is no number, and does not count."
        places = [(run.rate, run.seed) for run in one.runs if run.loss is not None]
        if len(set(places)) < len(places):
            yield f"{one.label} has several runs of one rate and seed, of which one counts."


def _screened(comparison: Comparison, asked: Asked) -> Iterable[str]:
    screening = Screening.of_record(asked)
    if screening is not None and comparison.screening_losses:
        yield screening_caveat(screening, comparison.screening_losses)


def _rates(ran: Sequence[CandidateResult]) -> Iterable[str]:
    for one in ran:
        if one.edge and one.best_rate is not None:
            beyond = {"largest": "larger", "smallest": "smaller"}[one.edge]
            yield (
                f"{one.label} did best with the {one.edge} rate that was tried, {one.best_rate:g}: a {beyond} one may "
                "be better still."
            )
        if one.chosen_and_counted:
            yield f"{one.label}'s rate was chosen by a run that counts itself, which flatters it: give it more seeds."
    tried = {len(one.rates) for one in ran}
    if len(ran) > 1 and tried == {1}:
        yield "Each model was tried with one learning rate only, so this may compare rates more than models."
    elif len(tried) > 1:
        yield "Some models were tried with more learning rates than others."


def _seeds(ran: Sequence[CandidateResult]) -> Iterable[str]:
    fewest = min((len(one.losses) for one in ran), default=FEW_SEEDS)
    if fewest == 1 and len(ran) > 1:
        yield "There is one seed only, which cannot tell a difference from noise."
    elif fewest < FEW_SEEDS and len(ran) > 1:
        yield f"There are {fewest} seeds only, so that the intervals are very wide."
    if len({tuple(one.losses) for one in ran}) > 1:
        yield "The models have other seeds than each other; differences are of the seeds that both have."


def _unlike(ran: Sequence[CandidateResult]) -> Iterable[str]:
    tokens = {one.figure("tokens_seen") for one in ran}
    if len(tokens) > 1:
        yield "The models were not trained on the same number of tokens."
    differing = _differing(ran)
    if differing:
        more = ""
        if len(differing) > MOST_NAMED:
            more = f" and {len(differing) - MOST_NAMED} more"
        yield f"Beside the models, their settings differ in {_list(differing[:MOST_NAMED])}{more}."
    summaries: list[Mapping[str, Any]] = [run.summary for one in ran for run in one.counted if run.summary is not None]
    for key in MACHINE:
        if len(values := {str(summary.get(key))[:LONGEST_VALUE] for summary in summaries}) > 1:
            yield f"The runs were made with different values of {key}: {_list(sorted(values))}."


def _differing(ran: Sequence[CandidateResult]) -> list[str]:
    """Settings beside the model that decide about a training and are not the same for all."""
    configs = [run.config for one in ran for run in one.counted if run.config]
    settings = [scalars({key: config.get(key) for key in ALIKE}) for config in configs]
    return sorted(key for key in set().union(*settings) if len({str(one.get(key)) for one in settings}) > 1)


def _off_budget(ran: Sequence[CandidateResult], match: str | None) -> Iterable[str]:
    """Sizes that were not matched, where they are further apart than matching leaves them, or time that came out other
    than it was measured before."""
    sizes = [size for one in ran if (size := one.figure("parameters")) is not None]
    if match is None and sizes and max(sizes) / min(sizes) > 1 + 2 * TOLERANCE:
        yield f"Sizes were not matched: from {min(sizes):,.0f} to {max(sizes):,.0f} parameters."
    if match is not None and (budget := Budget.of(match)).kind == "seconds":
        for one in ran:
            seconds = one.figure("train_seconds")
            if seconds is not None and abs(seconds / budget.amount - 1) > TOLERANCE:
                off = f"{seconds / budget.amount - 1:+.0%}"
                yield f"{one.label} trained for {seconds:,.4g} s ({off}): its steps did not take what was measured."


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
