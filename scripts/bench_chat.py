"""Chat and serving: time to the first token by turn, and tokens per second in one and in 16 simultaneous conversations.

    python scripts/bench_chat.py [--turns 200] [--threads 2]

The models are untrained and of equal width, since the content of answers does not affect the time. Times are medians
over late turns, compared with second turns measured at the same moments.
"""

import argparse
import queue
import statistics
import time

from samout_train import build_model
from samout_train.data import Bytes
from samout_train.evaluation import Conversation, Sampling, Template
from samout_train.evaluation.serving import Engine, Generation
from samout_train.runtime import keep_freed_memory, use_threads

SIZES = {"hidden_size": 128, "num_layers": 4, "num_heads": 4}
QUESTION = "What comes after this, and what before it?"
AROUND, ANSWER_TOKENS = 20, 4


def talk_times(turns: int) -> None:
    """Print the time to the first token late in a conversation and in its second turn, and the state's bytes.

    A second conversation restarts after every two turns, so that both times are measured at the same moments.
    """
    print(f"{'model':<12} {'turn 2':>10} {'late':>10} {'ratio':>7} {'state at 2':>12} {'state at end':>13}")
    for name in ("v8", "maxplus", "transformer"):
        settings = dict(SIZES)
        if name == "transformer":
            settings["max_seq_len"] = 100_000
        model = build_model(name, vocab_size=len(Bytes()), **settings)
        long, short = (Conversation(model, Bytes(), Template()) for _ in range(2))
        late: list[float] = []
        second: list[float] = []
        sizes: list[int] = []
        for turn in range(turns + AROUND):
            if turn % 2 == 0:
                short.reset()
            for talk, found in ((short, second), (long, late)):
                seconds = first_token(talk)
                if turn >= turns - AROUND and (talk is long or turn % 2):
                    found.append(seconds)
            sizes.append(long.state_bytes())
        early, end = statistics.median(second), statistics.median(late)
        row = f"{name:<12} {early * 1e3:>7.2f} ms {end * 1e3:>7.2f} ms {end / early:>7.2f}"
        print(f"{row} {sizes[1]:>12,} {sizes[turns - 1]:>13,}")


def first_token(talk: Conversation) -> float:
    """Return the seconds to the first token of an answer, and generate the rest of it."""
    started = time.perf_counter()
    answer = talk.answer(QUESTION, Sampling(max_new_tokens=ANSWER_TOKENS))
    next(answer, None)
    seconds = time.perf_counter() - started
    for _ in answer:
        pass
    return seconds


def side_by_side(name: str, counts: tuple[int, ...], tokens: int) -> None:
    """Print a model's tokens per second in several conversations at once, with answers of equal length."""
    vocabulary = Bytes()
    model = build_model(name, vocab_size=len(vocabulary), **SIZES)
    engine = Engine(model, max_batch=max(counts), max_waiting=100, cache_bytes=1 << 26)
    prompt = [1, *vocabulary.encode(QUESTION).tolist(), 2]
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for round_number in range(6):
        for count in counts:
            ended: queue.Queue[str] = queue.Queue()

            def deliver(index: int | None, ending: str | None, ended: "queue.Queue[str]" = ended) -> None:
                if ending is not None:
                    ended.put(ending)

            started = time.perf_counter()
            for _ in range(count):
                sampling = Sampling(max_new_tokens=tokens)
                engine.submit(Generation(prompt, sampling, ends_at_special=False, deliver=deliver))
            for _ in range(count):
                ended.get()
            if round_number:  # the first one compiles
                speeds[count].append(count * tokens / (time.perf_counter() - started))
    engine.close()
    one = statistics.median(speeds[counts[0]])
    for count, found in speeds.items():
        speed = statistics.median(found)
        print(f"{name}, {count:>3} at once: {speed:>8,.0f} tokens/s, {speed / one:.2f} of one")


def main() -> None:
    """Measure chat and serving."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    keep_freed_memory()
    use_threads(given.threads)
    for name in ("v8", "transformer", "transformer_modern"):
        side_by_side(name, (1, 4, 16), tokens=100)
    talk_times(given.turns)


if __name__ == "__main__":
    main()
