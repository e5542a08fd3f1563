"""Turn typed functions into verbs: the signature is the schema of the settings, and the docstring is the help.

A verb is one function in a file of its name here, and one root YAML of its name in conf/:

    @verb
    def inspect(*, path: str) -> int:
        '''Describes a path.'''

Its keys are its keyword-only arguments; `**train` adds all keys of `train`. A first argument `request` receives the
parsed command line. The function returns the exit code.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from samout_train.cli.request import Request, top_key
from samout_train.config import (
    MISSING,
    PLAIN_TEXT_KEYS,
    Composed,
    ConfigError,
    Problem,
    check_call,
    compose_config,
    key_of,
    nearest,
    require_no_problems,
    root_keys,
    swept_words,
)
from samout_train.runtime import PlaceError, in_words, is_full, library_variables


class Verb:
    """A verb that makes no run directory by itself.

    Args:
        function: Called with the settings; returns the exit code.
        own_words: Keys whose overrides the function composes itself, from `request.own_words`.
    """

    def __init__(self, function: Callable[..., int], *, own_words: Sequence[str] = ()) -> None:
        self.name = function.__name__
        self.function, self.own_words = function, tuple(own_words)
        self.keys = keys_of(function)
        functools.update_wrapper(self, function)

    def __call__(self, words: Sequence[str]) -> int:
        """Parse a command line, answer or execute it, and report its mistakes.

        Args:
            words: The command line after the verb.

        Returns:
            The exit code: 0 done, 1 something failed or did not hold, 2 the request was wrong, 130 or 143 stopped by a
            signal.
        """
        try:
            request = Request(words, self.name)
            self._require_no_sweep(request)
            if request.asks_only:
                self._inform(request)
                return 0
            if swept := swept_words(request.overrides):
                one = f"several values; {self.name} takes one, and a list is written {swept[0].partition('=')[0]}=[...]"
                raise ConfigError(f"{swept[0]}: {one}")
            request.take_out(self.own_words)
            return self._done(request)
        except BrokenPipeError:  # the reader has closed the pipe
            return 0
        except ValueError as error:
            if library_variables(error):
                raise
            print(error, file=sys.stderr)
            return 2
        except OSError as error:
            print(in_words(error), file=sys.stderr)
            if is_full(error) or isinstance(error, PlaceError):
                return 1
            return 2

    def composed(self, request: Request) -> Composed:
        """Return the settings: the verb's YAML with the overrides of a request.

        Raises:
            ConfigError: if one is wrong.
        """
        known = inspect.signature(self.keys).parameters
        overrides, found = [], []
        for word in request.overrides:
            if "=" in word and top_key(word) not in (*known, "hydra"):
                found.append(Problem.of_word(word, text=f"no such key; {nearest(top_key(word), known)}"))
            else:
                overrides.append(word)
        composed = compose_config(overrides, config_name=self.name, config_dirs=request.config_dirs)
        for word in overrides:
            group = top_key(word)
            if key_of(word) != group and composed.choices.get(group, "") is None:
                found.append(Problem.of_word(word, text=f"no {group} is chosen", fix=f"add {group}=NAME"))
        # A typed text may itself be ???, and --cfg and --help work without required keys.
        text = set(map(top_key, overrides)) & set(PLAIN_TEXT_KEYS)
        given = dict(composed.config)
        for key, value in composed.config.items():
            if value == MISSING and (key in text or request.asks_only):
                given[key] = ""
        require_no_problems(found + check_call("", self.keys, given))
        return composed

    def _require_no_sweep(self, request: Request) -> None:
        if request.in_sweep:
            raise ConfigError(f"-m: {self.name} makes no sweeps: leave it out")
        if request.arguments.config_name:
            raise ConfigError(
                f"--config-name {request.config_name}: {self.name} has its own, {self.name}.yaml: leave it out"
            )

    def _inform(self, request: Request) -> None:
        """Answer a question, once the settings are checked."""
        if not request.arguments.shell_completion:
            request.composed = self.composed(request)
            require_no_problems(request.package_problems(request.composed.config))
        request.answer()

    def _done(self, request: Request) -> int:
        from samout_train.checkpoint import CheckpointError

        request.composed = self.composed(request)
        settings = request.composed.config
        try:
            if takes_request(self.function):
                return self.function(request, **settings)
            return self.function(**settings)
        except CheckpointError as error:
            print(error, file=sys.stderr)
            return 1


def verb(function: Callable[..., int]) -> Verb:
    """Turn a function into a verb whose keys are its keyword-only arguments."""
    return Verb(function)


def verb_with_own_words(*keys: str) -> Callable[[Callable[..., int]], Verb]:
    """Return a decorator for a verb that composes the overrides of some keys itself.

    Args:
        keys: With `data`, for example, the function finds `data=...` and `data.x=...` in `request.own_words`.
    """

    def decorate(function: Callable[..., int]) -> Verb:
        return Verb(function, own_words=keys)

    return decorate


def keys_of(function: Callable[..., Any]) -> Callable[..., None]:
    """Return a function whose signature has a verb's keys: its keyword-only arguments, and train's for `**train`."""
    found: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found[name] = parameter
        elif parameter.kind is parameter.VAR_KEYWORD:
            found |= inspect.signature(root_keys).parameters
            found["experiment"] = inspect.Parameter("experiment", parameter.KEYWORD_ONLY, default=None, annotation=Any)

    def keys(**settings: Any) -> None:
        """Carry a signature; never called."""

    keys.__signature__ = inspect.Signature(list(found.values()))  # type: ignore[attr-defined]
    keys.__annotations__ = {name: parameter.annotation for name, parameter in found.items()}
    return keys


def takes_request(function: Callable[..., Any]) -> bool:
    """Return whether a verb's function takes the parsed command line."""
    return "request" in inspect.signature(function).parameters
