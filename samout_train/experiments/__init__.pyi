from .compare.beside import on_task as on_task, sizes_of as sizes_of, tasks_of as tasks_of
from .compare.candidates import (
    Candidate as Candidate,
    candidates as candidates,
    check_decided as check_decided,
    contenders as contenders,
    with_operations as with_operations,
)
from .compare.causality import require_causal_models as require_causal_models
from .compare.choices import check_choices as check_choices, choices_of as choices_of
from .compare.matching import Budget as Budget, Sizes as Sizes
from .compare.page import finish as finish, make_runs as make_runs, show as show
from .compare.plan import Plan as Plan
from .compare.record import known_sizes as known_sizes, read_record as read_record
from .compare.screening import (
    check_leaders as check_leaders,
    check_screening as check_screening,
    screening_of as screening_of,
)
from .jobs import (
    FAILURE as FAILURE,
    Job as Job,
    Outcome as Outcome,
    Why as Why,
    described as described,
    finished as finished,
    forget_failure as forget_failure,
    has_checkpoint as has_checkpoint,
    job_bar as job_bar,
    outcome as outcome,
    record_failure as record_failure,
)
from .prove_resume import TrainingFailedError as TrainingFailedError, digests as digests, run_killed as run_killed
from .reproduce import HEADER as HEADER, GoldenCurve as GoldenCurve, losses_of as losses_of
from .search import EXAMPLE as EXAMPLE, Search as Search, check_space as check_space, space_of as space_of
from .sweep import (
    check_job as check_job,
    check_job_data as check_job_data,
    check_sweep as check_sweep,
    check_taken_job as check_taken_job,
    common_keys as common_keys,
    doubles as doubles,
    job_name as job_name,
    jobs_at_once as jobs_at_once,
    jobs_of as jobs_of,
    read_sweep as read_sweep,
    register_job_directory as register_job_directory,
    sweep_jobs as sweep_jobs,
    wait_for_others as wait_for_others,
    without_sweeps as without_sweeps,
    words_of_sweep as words_of_sweep,
    write_sweep as write_sweep,
)
