"""What a comparison found, in words: who is better, whether that is more than noise, and what speaks against it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from samout_train.comparison.intervals import CONFIDENCE, Difference
from samout_train.comparison.matching import TOLERANCE
from samout_train.comparison.results import Contest, Contestant, difference
from samout_train.run_directory import scalars

FEW_SEEDS = 3
MOST_NAMED = 6  # differing settings in one sentence
# Of a run that is compared, what decides about the tokens that it sees and the arithmetic that it is trained in.
ALIKE = ("data", "trainer", "precision", "schedule")
MACHINE = ("device", "torch", "commit")


def verdict(contest: Contest, match: str | None) -> list[str]:
    """Three sentences: the best, how far the others are behind it, and how far it is fair.

    Args:
        contest: Models on the same data.
        match: The budget that all had, as typed; None for none, or where it is not known.
    """
    if not contest.ranked:
        return [f"Nothing is known of {contest.data}: no run came to a loss."]
    best, *others = contest.ranked
    many = f"mean and standard deviation of {len(best.losses)} seeds" if len(best.losses) > 1 else "one seed"
    sentences = [
        f"{best.label} has the lowest validation loss on {contest.data}: {mean_and_spread(best)} nats a token ({many})."
    ]
    if others:
        sentences.append(_behind(best, others))
    fair = f"{_same_tokens(contest)}{_sizes(contest)}" if others else _same_tokens(contest)
    against = speaks_against(contest, match)
    known = f"; what speaks against it ({len(against)}) stands below" if against else ""
    return [*sentences, f"{fair}{known}."]


def mean_and_spread(one: Contestant) -> str:
    """`1.612 ± 0.004`: the mean, and the standard deviation of a sample where there are two or more."""
    if one.mean is None:
        return ""
    return f"{one.mean:.3f}" + ("" if one.spread is None else f" ± {one.spread:.3f}")


def in_words(found: Difference | None) -> str:
    """`within noise`, `more than noise`, or that it is not known."""
    noise = None if found is None else found.within_noise
    return {None: "not known: one seed", True: "within noise", False: "more than noise"}[noise]


def interval(found: Difference) -> str:
    """`0.033 (0.015 to 0.051)`."""
    if found.low is None or found.high is None:
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def speaks_against(contest: Contest, match: str | None) -> list[str]:
    """What a reader has to know before believing it, a sentence each."""
    ran = contest.ranked
    return [
        *_unfinished(contest),
        *_unequal(contest, match),
        *_rates(ran),
        *_seeds(ran),
        *_unlike(ran),
    ]


def _behind(best: Contestant, others: Sequence[Contestant]) -> str:
    by_word: dict[str, list[str]] = {}
    for other in others:
        found = difference(other, best)
        shown = other.label if found is None else f"{other.label}, by {interval(found)}"
        by_word.setdefault(in_words(found), []).append(shown)
    parts = []
    if near := by_word.get("within noise"):
        parts.append(f"within noise of it {_are(near)} {'; '.join(near)}")
    if behind := by_word.get("more than noise"):
        parts.append(f"more than noise above it {_are(behind)} {'; '.join(behind)}")
    if unknown := by_word.get("not known: one seed"):
        parts.append(f"one seed cannot tell whether it is below {'; '.join(unknown)}")
    text = ", and ".join(parts)
    return f"{text[0].upper()}{text[1:]} (nats, with {CONFIDENCE:.0%} intervals of the differences seed by seed)."


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _same_tokens(contest: Contest) -> str:
    tokens = {round(count) for one in contest.ranked if (count := one.figure("tokens_seen")) is not None}
    if len(contest.ranked) == 1:
        return f"It was trained on {_list(f'{count:,}' for count in tokens)} tokens"
    if len(tokens) == 1:
        return f"All were trained on the same {tokens.pop():,} tokens"
    return f"They were NOT trained on the same tokens ({_list(f'{count:,}' for count in sorted(tokens))})"


def _sizes(contest: Contest) -> str:
    sizes = [size for one in contest.ranked if (size := one.figure("parameters")) is not None]
    if not sizes:
        return ""
    share = max(sizes) / min(sizes) - 1
    return f", and their parameters are within {share:.1%} of each other"


def _unfinished(contest: Contest) -> Iterable[str]:
    for one in contest.contestants:
        for run in one.missing:
            error = f": {run.outcome.error}" if run.outcome.error else ""
            yield f"{run.run_dir.name} of {one.label} is {run.outcome.state}{error}."
        if one.mean is None and not one.missing:
            yield f"{one.label} has no loss that is a number."


def _rates(ran: Sequence[Contestant]) -> Iterable[str]:
    for one in ran:
        if one.edge and one.best_rate is not None:
            beyond = "larger" if one.edge == "largest" else "smaller"
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


def _seeds(ran: Sequence[Contestant]) -> Iterable[str]:
    fewest = min((len(one.losses) for one in ran), default=FEW_SEEDS)
    if fewest == 1 and len(ran) > 1:
        yield "There is one seed only, which cannot tell a difference from noise."
    elif fewest < FEW_SEEDS and len(ran) > 1:
        yield f"There are {fewest} seeds only, so that the intervals are very wide."
    if len({tuple(one.losses) for one in ran}) > 1:
        yield "The models have other seeds than each other; differences are of the seeds that both have."


def _unlike(ran: Sequence[Contestant]) -> Iterable[str]:
    tokens = {one.figure("tokens_seen") for one in ran}
    if len(tokens) > 1:
        yield "The models were not trained on the same number of tokens."
    settings = [
        scalars({key: run.config.get(key) for key in ALIKE}) for one in ran for run in one.counted if run.config
    ]
    differing = sorted(key for key in set().union(*settings) if len({str(one.get(key)) for one in settings}) > 1)
    if differing:
        more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
        yield f"Beside the models, their settings differ in {_list(differing[:MOST_NAMED])}{more}."
    summaries: list[Mapping[str, Any]] = [run.summary for one in ran for run in one.counted if run.summary is not None]
    for key in MACHINE:
        if len(values := {str(summary.get(key)) for summary in summaries}) > 1:
            yield f"The runs were made with different values of {key}: {_list(sorted(values))}."


def _unequal(contest: Contest, match: str | None) -> Iterable[str]:
    """Sizes that were not matched, where they are further apart than matching leaves them."""
    sizes = [size for one in contest.ranked if (size := one.figure("parameters")) is not None]
    if match is None and sizes and max(sizes) / min(sizes) > 1 + 2 * TOLERANCE:
        yield f"Sizes were not matched: from {min(sizes):,.0f} to {max(sizes):,.0f} parameters."


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
