from . import distributed as distributed
from .cache import cache_path as cache_path, read_note as read_note, write_note as write_note
from .compilation import (
    compile_problem as compile_problem,
    compiled as compiled,
    has_cpp_compiler as has_cpp_compiler,
    told_compilation as told_compilation,
)
from .console import (
    UNWRITABLE as UNWRITABLE,
    input_as_utf_8 as input_as_utf_8,
    is_terminal as is_terminal,
    lost_output as lost_output,
    text_of_word as text_of_word,
    use_lasting_streams as use_lasting_streams,
)
from .device import (
    DEVICE_FORMS as DEVICE_FORMS,
    DTYPES as DTYPES,
    MEMORY_LIMITS as MEMORY_LIMITS,
    Clock as Clock,
    PrecisionName as PrecisionName,
    autocast as autocast,
    choose_device as choose_device,
    choose_precision as choose_precision,
    commit as commit,
    current_memory_bytes as current_memory_bytes,
    device_name as device_name,
    device_random_state as device_random_state,
    float64_place as float64_place,
    keep_freed_memory as keep_freed_memory,
    peak_memory_bytes as peak_memory_bytes,
    random_states as random_states,
    reset_peak_memory as reset_peak_memory,
    seed_everything as seed_everything,
    set_device_random_state as set_device_random_state,
    set_own_random_states as set_own_random_states,
    set_random_states as set_random_states,
    to_device as to_device,
    too_large as too_large,
    total_memory_bytes as total_memory_bytes,
    use_threads as use_threads,
    wait_for as wait_for,
)
from .distributed import LostProcessError as LostProcessError
from .event_file import EventFile as EventFile
from .file_kind import (
    COMPRESSED_ENDINGS as COMPRESSED_ENDINGS,
    HEAD_BYTES as HEAD_BYTES,
    TEXT as TEXT,
    converting_line as converting_line,
    kept_otherwise as kept_otherwise,
    old_file_away as old_file_away,
    refuse_special as refuse_special,
)
from .files import (
    RESERVED as RESERVED,
    append as append,
    leftovers as leftovers,
    replace_file as replace_file,
    take_place as take_place,
)
from .home import home_expanded as home_expanded, home_path as home_path
from .json_files import finite_or_null as finite_or_null, read_figures as read_figures, write_figures as write_figures
from .launch import WITHOUT_DIRECTORY as WITHOUT_DIRECTORY, Launch as Launch
from .log import log_file as log_file
from .missing_home import ensure_home as ensure_home, own_folder as own_folder
from .places import (
    PlaceError as PlaceError,
    in_words as in_words,
    is_full as is_full,
    is_of_a_place as is_of_a_place,
    message_of as message_of,
    place_problem as place_problem,
)
from .progress import Bar as Bar
from .search_path import (
    child_program as child_program,
    hiding_files as hiding_files,
    library_variables as library_variables,
    plugin_place as plugin_place,
)
from .shell import (
    dashboard_command as dashboard_command,
    list_setting as list_setting,
    program as program,
    program_file as program_file,
    quoted as quoted,
    shell_word as shell_word,
    shown_path as shown_path,
    text_setting as text_setting,
    typed_line as typed_line,
)
from .signals import (
    SIGNALS as SIGNALS,
    StopRequestedError as StopRequestedError,
    StopSignals as StopSignals,
    ask_to_stop as ask_to_stop,
    ignore_interrupts as ignore_interrupts,
    own_group as own_group,
    treat_hangup_as_termination as treat_hangup_as_termination,
)
from .tensor_file import (
    LEGACY as LEGACY,
    ZIP as ZIP,
    MoreThanTensorsError as MoreThanTensorsError,
    StandIn as StandIn,
    read_module_file as read_module_file,
    read_tensor_file as read_tensor_file,
)
from .tf32 import tf32_problem as tf32_problem, use_tf32 as use_tf32
from .threads import (
    Others as Others,
    available_cores as available_cores,
    share_of_cores as share_of_cores,
    told_others as told_others,
    wait_shortly as wait_shortly,
)
