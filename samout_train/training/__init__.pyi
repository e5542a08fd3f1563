from .callbacks.base import Callback as Callback, RunContext as RunContext, StepReport as StepReport
from .causality import NotCausalError as NotCausalError, require_causal as require_causal
from .non_finite import NonFiniteError as NonFiniteError
from .run import (
    build_model as build_model,
    build_trainer as build_trainer,
    prepare as prepare,
    source_from as source_from,
    train as train,
    trainer_from as trainer_from,
)
from .schedules import Progress as Progress
from .settings import (
    DATA_SETTINGS as DATA_SETTINGS,
    changes_nothing as changes_nothing,
    check_data as check_data,
    check_settings as check_settings,
    checked_config as checked_config,
    data_problems as data_problems,
    model_node as model_node,
    without_missing as without_missing,
)
from .trainer import MemoryExhaustedError as MemoryExhaustedError, Trainer as Trainer
