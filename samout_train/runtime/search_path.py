"""Files in the working directory that hide modules: child processes avoid them, and messages name them."""

# ruff: noqa: PTH100, PTH120, PTH206

import os
import sys

# The folder that contains the package.
PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Prefixes of environment variables that differ from the name of their library.
PREFIXES = {"torch": ("TORCH", "PYTORCH_"), "matplotlib": ("MPL", "MATPLOTLIB_")}


# Of what such a process prints to a file, which is read as UTF-8.
CHILD_ENCODING = {"PYTHONIOENCODING": "utf-8"}


def child_program(first: str = "") -> list[str]:
    """Return the command that starts this program in another process, safe from files in its working directory.

    `python -m samout_train` would import a file `samout_train.py` or `types.py` from there.

    Args:
        first: Python code to run first, such as `import torch; `.
    """
    package = PACKAGE_PARENT
    path = f"sys.path[:] = [*filter(None, sys.path), {package!r}]"
    return [sys.executable, "-c", f"import sys; {path}; {first}from samout_train.__main__ import main; main()"]


def plugin_place(error: BaseException) -> str | None:
    """Return file and line of the Hydra plugin that raised an error while it was imported; None for other errors."""
    if isinstance(error, SyntaxError) and _is_plugin(error.filename):
        return f"{error.filename}:{error.lineno}"
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name == "<module>" and _is_plugin(code.co_filename):
            return f"{code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return None


def _is_plugin(file: str | None) -> bool:
    return "hydra_plugins" in os.path.dirname(file or "").split(os.sep)


def library_variables(error: BaseException) -> list[str]:
    """Return the environment variables of a library that raised an error while it was imported."""
    traceback, is_importing, found = error.__traceback__, False, set()
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in ("", "__main__", "samout_train", "importlib"):
            is_importing |= traceback.tb_frame.f_code.co_name == "<module>"
            if is_importing:
                found.add(name)
        traceback = traceback.tb_next
    prefixes: list[str] = []
    for name in found:
        prefixes += PREFIXES.get(name, (f"{name.upper()}_",))
    return sorted(name for name in os.environ if name.startswith(tuple(prefixes)))


def hiding_files() -> list[str]:
    """Return the files of the working directory and of PYTHONPATH that were imported in place of known modules."""
    from importlib.machinery import PathFinder

    own = {os.path.abspath(entry) for entry in (os.curdir, *os.environ.get("PYTHONPATH", "").split(os.pathsep))}
    others = [entry for entry in sys.path if os.path.abspath(entry) not in own]
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or not file or name in ("__main__", "samout_train"):
            continue
        folder, base = os.path.split(os.path.abspath(file))
        if base == "__init__.py":
            folder = os.path.dirname(folder)
        if folder in own and (name in sys.stdlib_module_names or PathFinder.find_spec(name, others) is not None):
            found.append(file)
    return found
