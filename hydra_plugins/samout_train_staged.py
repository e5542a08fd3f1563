"""The sweeper of samout_train.experiments.staged, in the only package that Hydra takes plugins from."""

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class StagedSweeper(Sweeper):
    """Launches the jobs of both stages, and writes `forms.md` and `forms.png` into the sweep's directory.

    Args:
        **settings: Those of samout_train.experiments.staged.Stages.
    """

    def __init__(self, **settings: Any) -> None:
        from samout_train.experiments.staged import Stages

        self.stages = Stages(**{key: _plain(value) for key, value in settings.items()})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra asks for it."""
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs both stages.

        Args:
            arguments: What was typed, and all jobs have in common.
        """
        from samout_train.config.compose import CONF, unresolved
        from samout_train.config.overrides import words_for_hydra
        from samout_train.experiments.jobs import finished
        from samout_train.experiments.staged import Job, Summary

        self.folder.mkdir(parents=True, exist_ok=True)
        done = 0

        def launched(jobs: list[Job]) -> dict[Job, Summary | None]:
            nonlocal done
            words = [words_for_hydra(job.overrides, folders=[CONF], typed=False) for job in jobs]
            returns = self.launcher.launch([[*arguments, *own] for own in words], initial_job_idx=done)
            done += len(jobs)
            for result in returns:
                _ = result.return_value  # raises what the job raised
            found: dict[Job, Summary | None] = {}
            for job, result in zip(jobs, returns, strict=True):
                assert result.hydra_cfg is not None  # of a job that was launched
                found[job] = finished(Path(unresolved(result.hydra_cfg, "hydra.runtime.output_dir")))
            return found

        screened = launched(self.stages.screening())
        finals = self.stages.finals(screened)
        write_forms(self.folder, self.stages, screened, launched(finals) if finals else {})


def write_forms(folder: Path, stages: Any, screened: Any, final: Any) -> None:
    """The table and the picture of what both stages came to."""
    from samout_train.evaluation.charts import draw_forms, missing_charts
    from samout_train.runtime import replace_file

    table = stages.markdown(screened, final)
    replace_file(folder / "forms.md", lambda file: file.write(table.encode()))
    draw_forms(stages.points(screened), stages.points(final), path=folder / "forms.png")
    print(table)
    print(f"written to {folder / 'forms.md'}; {missing_charts() or f'drawn in {folder}/forms.png'}")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
