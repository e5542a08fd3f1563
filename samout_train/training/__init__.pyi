from .callbacks.base import Callback as Callback, RunContext as RunContext, StepReport as StepReport
from .joining import together as together
from .non_finite import NonFiniteError as NonFiniteError
from .rescue import MemoryExhaustedError as MemoryExhaustedError
from .run import (
    build_model as build_model,
    build_trainer as build_trainer,
    prepare as prepare,
    source_from as source_from,
    train as train,
    trainer_from as trainer_from,
)
from .settings import (
    DATA_SETTINGS as DATA_SETTINGS,
    checked_config as checked_config,
    data_problems as data_problems,
    model_node as model_node,
)
from .trainer import Trainer as Trainer
