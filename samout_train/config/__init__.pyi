from .compose import (
    CONF as CONF,
    HYDRAS_DIRECTORIES as HYDRAS_DIRECTORIES,
    PACKAGE as PACKAGE,
    YAML_DUMPER as YAML_DUMPER,
    Composed as Composed,
    build as build,
    compose_checked as compose_checked,
    compose_config as compose_config,
    escaped as escaped,
    locate as locate,
    options_with as options_with,
    resolve as resolve,
    unresolved as unresolved,
)
from .diagnostics import in_few_words as in_few_words, no_node as no_node, wrong_flag as wrong_flag
from .hydra import get_args_parser as get_args_parser, run_hydra as run_hydra
from .moved import current_settings as current_settings, take_earlier_names as take_earlier_names
from .nodes import (
    WHAT_A_SCHEDULE_IS as WHAT_A_SCHEDULE_IS,
    check_model as check_model,
    check_node as check_node,
    model_problems as model_problems,
    node_problems as node_problems,
)
from .overrides import (
    PLAIN_TEXT_KEYS as PLAIN_TEXT_KEYS,
    TEXT_KEYS as TEXT_KEYS,
    as_typed as as_typed,
    check_overrides as check_overrides,
    is_there as is_there,
    key_of as key_of,
    override_problems as override_problems,
    quote_text as quote_text,
    words_for_hydra as words_for_hydra,
)
from .problem import (
    ConfigError as ConfigError,
    Place as Place,
    Problem as Problem,
    as_problems as as_problems,
    require_no_problems as require_no_problems,
    short_path as short_path,
    shown as shown,
)
from .ranges import (
    DeviceName as DeviceName,
    Layers as Layers,
    NonNegative as NonNegative,
    Penalty as Penalty,
    Positive as Positive,
    Probability as Probability,
    Range as Range,
    Seed as Seed,
    Seeds as Seeds,
    Share as Share,
    Size as Size,
    SizeOrNone as SizeOrNone,
    Threads as Threads,
    TopShare as TopShare,
    checked_by as checked_by,
    not_divisible as not_divisible,
    validated as validated,
)
from .root import OnLeak as OnLeak, root_keys as root_keys
from .saved import (
    list_as_yaml as list_as_yaml,
    saved_choice as saved_choice,
    saved_config as saved_config,
    saved_keys as saved_keys,
    saved_node as saved_node,
    saved_seed as saved_seed,
)
from .signature import (
    MISSING as MISSING,
    accepted_by as accepted_by,
    check_call as check_call,
    missing as missing,
    mistakes_in_call as mistakes_in_call,
    nearest as nearest,
)
from .sweeps import (
    combinations as combinations,
    is_swept as is_swept,
    key_or_group as key_or_group,
    register_text as register_text,
    swept_words as swept_words,
)
from .yaml_files import (
    is_empty as is_empty,
    options_of as options_of,
    with_places as with_places,
    yaml_problem as yaml_problem,
)
