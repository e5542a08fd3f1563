"""What a sweep of models over tasks came to: a table of accuracies, and the same as a heat map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from samout_train.evaluation import draw_heat_map, missing_charts
from samout_train.experiments.compare.charts import natural
from samout_train.experiments.jobs import finished
from samout_train.runtime import replace_file


class HeatMap(Callback):
    """At the end of a sweep, writes `heat_map.png` and `accuracy.md` into its directory."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads what the jobs left; those that did not finish are gaps."""
        folder = Path(config.hydra.sweep.dir)
        table = AccuracyTable.of([summary for path in sorted(folder.iterdir()) if (summary := finished(path))])
        if not table.tests:
            return
        replace_file(folder / "accuracy.md", lambda file: file.write(table.markdown().encode()))
        draw_heat_map(
            table.shares(),
            rows=table.tests,
            columns=table.models,
            title="accuracy, with chance in brackets",
            path=folder / "heat_map.png",
        )
        print(table.markdown())
        print(f"written to {folder / 'accuracy.md'}; {missing_charts() or f'drawn in {folder}/heat_map.png'}")


@dataclass(frozen=True)
class AccuracyTable:
    """Accuracies by test and model.

    Args:
        tests: Such as `parity, length 256 (0.5)`, with chance in brackets.
        models: Their names.
        by_model: By model and test, what `summary.json` has.
    """

    tests: list[str]
    models: list[str]
    by_model: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @classmethod
    def of(cls, summaries: Sequence[Mapping[str, Any]]) -> "AccuracyTable":
        """From the summaries of runs on tasks; others are left out.

        Of several runs of a model on a task, that with the lowest loss on the validation rows counts.
        """
        by_model: dict[str, dict[str, Mapping[str, Any]]] = {}
        tests: dict[str, None] = {}
        for summary in sorted(summaries, key=_validation_loss, reverse=True):  # a better one takes the place of others
            for name, found in summary.get("accuracy", {}).items():
                if name != "validation":
                    test = f"{summary['data']}, {name.replace('_', ' ')} ({summary['chance']:.2g})"
                    tests[test] = None
                    by_model.setdefault(str(summary["model"]), {})[test] = found
        return cls(sorted(tests, key=natural), sorted(by_model), by_model)

    def shares(self) -> list[list[float | None]]:
        """A row for each test, with the share of right answers of each model; None where there is none."""
        return [
            [self.by_model[model][test]["share"] if test in self.by_model[model] else None for model in self.models]
            for test in self.tests
        ]

    def markdown(self) -> str:
        """A row for each test: the share, and how far its interval reaches from it at the most."""
        lines = [f"| accuracy (chance) | {' | '.join(self.models)} |", "|---" * (len(self.models) + 1) + "|"]
        for test in self.tests:
            cells = [_cell(self.by_model[model].get(test)) for model in self.models]
            lines.append(f"| {test} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    reach = max(found["share"] - found["low"], found["high"] - found["share"])
    return f"{found['share']:.3f} ± {reach:.3f}"


def _validation_loss(summary: Mapping[str, Any]) -> float:
    loss = summary.get("val_loss_nats")
    return float("inf") if loss is None else float(loss)
