from .causality import Leak as Leak, find_leak as find_leak, find_trained_leak as find_trained_leak
from .checks import verify as verify
from .result import CheckResult as CheckResult, Row as Row, distance as distance
from .subject import (
    SIZES as SIZES,
    ModelUnderTest as ModelUnderTest,
    Subject as Subject,
    models_under_test as models_under_test,
    pattern_of as pattern_of,
    sized as sized,
    trained_models_under_test as trained_models_under_test,
)
