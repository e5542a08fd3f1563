from . import distributed as distributed
from .clock import Clock as Clock
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
    PrecisionName as PrecisionName,
    autocast as autocast,
    choose_device as choose_device,
    choose_precision as choose_precision,
    compile_problem as compile_problem,
    compiled as compiled,
    float64_place as float64_place,
    has_cpp_compiler as has_cpp_compiler,
    logged_compilation as logged_compilation,
    tf32_problem as tf32_problem,
    to_device as to_device,
    use_device as use_device,
    use_tf32 as use_tf32,
    use_threads as use_threads,
    wait_for as wait_for,
)
from .distributed import (
    Launch as Launch,
    LostProcessError as LostProcessError,
)
from .event_file import EventFile as EventFile
from .file_kind import (
    COMPRESSED_ENDINGS as COMPRESSED_ENDINGS,
    HEAD_BYTES as HEAD_BYTES,
    TEXT as TEXT,
    compression_of as compression_of,
    converting_line as converting_line,
    kept_otherwise as kept_otherwise,
    new_file as new_file,
    old_file_away as old_file_away,
    require_regular_file as require_regular_file,
)
from .files import (
    RESERVED as RESERVED,
    append as append,
    finite_or_null as finite_or_null,
    leftovers as leftovers,
    read_figures as read_figures,
    read_json as read_json,
    replace_file as replace_file,
    sha256_of as sha256_of,
    take_place as take_place,
    write_figures as write_figures,
    write_json as write_json,
)
from .home import (
    cache_path as cache_path,
    ensure_home as ensure_home,
    home_expanded as home_expanded,
    home_path as home_path,
    own_folder as own_folder,
)
from .log import Bar as Bar, log_file as log_file
from .matmul import matmul_rate as matmul_rate
from .memory import (
    MEMORY_LIMITS as MEMORY_LIMITS,
    current_memory_bytes as current_memory_bytes,
    is_out_of_memory as is_out_of_memory,
    keep_freed_memory as keep_freed_memory,
    peak_memory_bytes as peak_memory_bytes,
    reset_peak_memory as reset_peak_memory,
    too_large as too_large,
    total_memory_bytes as total_memory_bytes,
)
from .os_errors import (
    PlaceError as PlaceError,
    in_words as in_words,
    is_full as is_full,
    is_of_a_place as is_of_a_place,
    message_of as message_of,
    place_problem as place_problem,
)
from .provenance import commit as commit, device_name as device_name
from .rng import (
    device_random_state as device_random_state,
    random_states as random_states,
    seed_everything as seed_everything,
    set_device_random_state as set_device_random_state,
    set_own_random_states as set_own_random_states,
    set_random_states as set_random_states,
)
from .search_path import (
    CHILD_ENCODING as CHILD_ENCODING,
    child_program as child_program,
    hiding_files as hiding_files,
    library_variables as library_variables,
    plugin_place as plugin_place,
)
from .shell import (
    dashboard_command as dashboard_command,
    install_line as install_line,
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
    wait_for_end as wait_for_end,
)
from .tensor_file import (
    LEGACY as LEGACY,
    ZIP as ZIP,
    MoreThanTensorsError as MoreThanTensorsError,
    StandIn as StandIn,
    read_module_file as read_module_file,
    read_tensor_file as read_tensor_file,
)
from .threads import (
    Others as Others,
    available_cores as available_cores,
    other_programs_message as other_programs_message,
    share_of_cores as share_of_cores,
    wait_shortly as wait_shortly,
)
