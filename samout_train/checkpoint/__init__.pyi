from .data_digests import (
    DataNow as DataNow,
    data_record as data_record,
    recorded_data as recorded_data,
    require_same_data as require_same_data,
)
from .error import CheckpointError as CheckpointError
from .evaluation_data import evaluation_data as evaluation_data, reads_documents as reads_documents
from .export import (
    VOCABULARY as VOCABULARY,
    WEIGHTS as WEIGHTS,
    Exported as Exported,
    ExportError as ExportError,
    export_run as export_run,
    load_exported as load_exported,
    load_trained as load_trained,
)
from .file_names import (
    CORRUPT as CORRUPT,
    checkpoint_path as checkpoint_path,
    saved_steps as saved_steps,
    shards_folder as shards_folder,
    step_files as step_files,
)
from .files import (
    FORMAT as FORMAT,
    damage as damage,
    delete_checkpoint as delete_checkpoint,
    find_checkpoint as find_checkpoint,
    has_manifest as has_manifest,
    is_complete as is_complete,
    newest_checkpoint as newest_checkpoint,
    read_checkpoint as read_checkpoint,
    read_manifest as read_manifest,
    replace_json as replace_json,
    serialised as serialised,
    write_checkpoint as write_checkpoint,
    write_manifest as write_manifest,
)
from .initial_weights import (
    InitialWeights as InitialWeights,
    load_initial_weights as load_initial_weights,
    read_initial_weights as read_initial_weights,
)
from .inspect import inspect_path as inspect_path
from .load import (
    LoadedRun as LoadedRun,
    averaged as averaged,
    load_run as load_run,
    load_vocabulary as load_vocabulary,
)
from .manager import Checkpoints as Checkpoints, Restored as Restored, made_with as made_with
from .run_directory import (
    EARLIER as EARLIER,
    Claim as Claim,
    DirectoryRefusedError as DirectoryRefusedError,
    TakenError as TakenError,
    as_begun as as_begun,
    check_content as check_content,
    check_resume as check_resume,
    check_run_directory as check_run_directory,
    check_start as check_start,
    content_problems as content_problems,
    differences as differences,
    holds_run as holds_run,
    in_turn as in_turn,
    is_earlier as is_earlier,
    is_reserved as is_reserved,
    is_taken as is_taken,
    locked as locked,
    new_directory as new_directory,
    other_kind as other_kind,
    other_settings as other_settings,
    reserve as reserve,
    resume_problems as resume_problems,
    run_directory_problems as run_directory_problems,
    scalars as scalars,
)
from .state import (
    is_usual as is_usual,
    load_optimizer as load_optimizer,
    load_weights as load_weights,
    named_values as named_values,
    require_same_vocabulary as require_same_vocabulary,
    saved_weights as saved_weights,
    weights_sha256 as weights_sha256,
)
