from .compare.matching import Budget as Budget
from .compare.page import finish as finish, make_runs as make_runs, show as show
from .compare.plan import (
    Plan as Plan,
    candidates as candidates,
    contenders as contenders,
    decided_problems as decided_problems,
    known_sizes as known_sizes,
    read_record as read_record,
)
from .compare.screening import screening_of as screening_of, screening_problems as screening_problems
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
from .search import EXAMPLE as EXAMPLE, Search as Search, space_of as space_of, space_problems as space_problems
from .sweep import (
    common_keys as common_keys,
    data_problems as data_problems,
    doubles as doubles,
    job_name as job_name,
    job_problems as job_problems,
    jobs_at_once as jobs_at_once,
    jobs_of as jobs_of,
    problems_where_taken as problems_where_taken,
    read_sweep as read_sweep,
    register_job_directory as register_job_directory,
    sweep_jobs as sweep_jobs,
    sweep_problems as sweep_problems,
    wait_for_others as wait_for_others,
    without_sweeps as without_sweeps,
    words_of_sweep as words_of_sweep,
    write_sweep as write_sweep,
)
