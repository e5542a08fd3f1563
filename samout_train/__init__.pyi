from .checkpoint import load_exported as load_exported, load_run as load_run, load_vocabulary as load_vocabulary
from .config import (
    ConfigError as ConfigError,
    NonNegative as NonNegative,
    Positive as Positive,
    Probability as Probability,
    Problem as Problem,
    Range as Range,
    Share as Share,
    validated as validated,
)
from .data import MatrixRows as MatrixRows, Rows as Rows, Source as Source
from .data.tasks import Task as Task, task as task
from .evaluation import generate_text as generate_text
from .models import load_published as load_published
from .training import (
    Callback as Callback,
    Progress as Progress,
    RunContext as RunContext,
    StepReport as StepReport,
    build_model as build_model,
    build_trainer as build_trainer,
    train as train,
)

__version__: str

def working_directory_last() -> None: ...
