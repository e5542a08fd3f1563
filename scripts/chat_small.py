"""From pretraining to a conversation in a few minutes: for each seed, pretrain, fine-tune, ask 200 held-out questions.

    python scripts/chat_small.py [--seeds 0] [--out outputs/chat_small] [--threads 2]

The text comes with Python: the codes, phrases and descriptions of `http.HTTPStatus`. Conversations ask about them in 90
phrasings: 15 wordings in each of 6 sentences. A question is a fact in a phrasing. 200 questions are held out: to answer
them, a model must know the fact and understand the phrasing, although it has not seen this pair.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from samout_train import load_run, train
from samout_train.evaluation import Accuracy, Conversation, Sampling, Template
from samout_train.runtime import keep_freed_memory, write_json

NUM_HELD_OUT, NUM_CONVERSATIONS, NUM_PASSES = 200, 6000, 150
MOST_TURNS = 3
# The model of experiment=chat_small, on the text.
PRETRAINING = (
    *("model=maxplus", "model.hidden_size=96", "model.num_layers=3", "model.dropout=0", "precision=fp32"),
    *(
        "data=text",
        "data.vocabulary=bpe",
        "data.vocab_size=1024",
        "data.seq_len=128",
        "data.batch_size=32",
        "data.budget_steps=150",
        "optimizer.lr=3e-3",
    ),
)
KINDS = {1: "informational", 2: "a success", 3: "a redirection", 4: "a client error", 5: "a server error"}
STATEMENTS = (
    "{code} means {phrase}.",
    "{phrase} has the code {code}.",
    "{code} is {kind}.",
    "{code} {phrase}: {description}",
)
# Wordings by answer. Each is put into each of the sentences below.
ASKED_FOR = {
    "{phrase}.": (
        "what {code} means",
        "what {code} stands for",
        "the meaning of {code}",
        "which phrase belongs to {code}",
        "what the server says with {code}",
        "the words for {code}",
    ),
    "{code}.": (
        "which code is {phrase}",
        "the code of {phrase}",
        "the number of {phrase}",
        "which status means {phrase}",
        "which number stands for {phrase}",
        "what to send for {phrase}",
    ),
    "{kind}.": (
        "what kind of code {code} is",
        "which class {code} belongs to",
        "how {code} is classified",
    ),
}
SENTENCES = (
    "Tell me {asked_for}.",
    "Do you know {asked_for}?",
    "I need to know {asked_for}.",
    "Please say {asked_for}.",
    "Remind me: {asked_for}?",
    "My question is {asked_for}.",
)
QUESTIONS = {
    answer: [sentence.format(asked_for=each) for each in phrasings for sentence in SENTENCES]
    for answer, phrasings in ASKED_FOR.items()
}


@dataclass(frozen=True)
class Question:
    """A question about a fact, and its answer."""

    text: str
    answer: str


def facts() -> list[dict[str, str]]:
    """Return the facts about each status code."""
    found = []
    for status in HTTPStatus:
        fact = {"code": str(int(status)), "phrase": status.phrase, "kind": KINDS[int(status) // 100]}
        found.append(fact | {"description": status.description or status.phrase})
    return found


def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """Return the questions that are learned and those that are held out; each answer is learned in other phrasings."""
    every = []
    for fact in facts():
        for answer, phrasings in QUESTIONS.items():
            for phrasing in phrasings:
                every.append(Question(phrasing.format(**fact), answer.format(**fact)))
    random.Random(seed).shuffle(every)
    return every[NUM_HELD_OUT:], every[:NUM_HELD_OUT]


def write_data(folder: Path, seed: int) -> None:
    """Write the text to pretrain on, the conversations, and the held-out questions."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(seed)
    lines: list[str] = []
    for _ in range(NUM_PASSES):
        statements = [statement.format(**fact) for fact in facts() for statement in STATEMENTS]
        draws.shuffle(statements)
        lines += statements
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    learned, held_out = questions(seed)
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(NUM_CONVERSATIONS):
            messages = []
            for question in draws.sample(learned, draws.randint(1, MOST_TURNS)):
                messages.append({"role": "user", "content": question.text})
                messages.append({"role": "assistant", "content": question.answer})
            file.write(json.dumps({"messages": messages}) + "\n")
    with (folder / "held_out.jsonl").open("w", encoding="utf-8") as file:
        for question in held_out:
            file.write(json.dumps({"instruction": question.text, "output": question.answer}) + "\n")


def ask(run: Path, asked: list[Question]) -> tuple[int, list[str]]:
    """Return how many questions a run answers exactly, and the wrong answers. Each question begins a conversation."""
    loaded = load_run(run)
    assert loaded.vocabulary is not None
    talk = Conversation(loaded.model, loaded.vocabulary, Template.of(loaded.data_node, loaded.line_ends))
    wrong = []
    for question in asked:
        talk.reset()
        said = "".join(talk.answer(question.text, Sampling(temperature=0, max_new_tokens=60)))
        if said != question.answer:
            wrong.append(f"{question.text} {said!r} instead of {question.answer!r}")
    return len(asked) - len(wrong), wrong


def one_seed(folder: Path, seed: int, threads: int) -> dict[str, object]:
    """Pretrain, fine-tune and ask; return the results."""
    write_data(folder, seed)
    started = time.monotonic()
    words = [f"seed={seed}", f"threads={threads}", "~callbacks.lengths", "~callbacks.state_health"]
    train([*words, *PRETRAINING, f"data.path={folder / 'text.txt'}", f"run_dir={folder / 'pretrained'}"])
    tuning = ["experiment=chat_small", f"data.path={folder / 'chat.jsonl'}", f"init_from={folder / 'pretrained'}"]
    summary, _ = train([*words, *tuning, f"run_dir={folder / 'tuned'}"])
    seconds = time.monotonic() - started
    right, wrong = ask(folder / "tuned", questions(seed)[1])
    accuracy = Accuracy(right, NUM_HELD_OUT)
    low, high = accuracy.interval
    print(f"seed {seed}: {right} of {NUM_HELD_OUT} right, {low:.1%} to {high:.1%} (95 % Wilson); {seconds:.0f} s")
    print("\n".join(f"  {line}" for line in wrong[:10]))
    return {
        "seed": seed,
        "right": right,
        "asked": NUM_HELD_OUT,
        "interval": [low, high],
        "seconds": seconds,
        "val_loss_nats": summary["val_loss_nats"],
        "wrong": wrong,
    }


def main() -> None:
    """Run all seeds, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/chat_small"))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    keep_freed_memory()
    found = []
    for seed in given.seeds:
        found.append(one_seed(given.out / f"seed_{seed}", seed, given.threads))
        write_json(given.out / "results.json", {"seeds": found})


if __name__ == "__main__":
    main()
