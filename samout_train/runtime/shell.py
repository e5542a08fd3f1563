"""Printed command lines: words quoted for the shell, values quoted for Hydra, paths and programs."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Shell = Literal["posix", "powershell", "pwsh", "cmd"]
# Words that need no quotes. PowerShell has its own meaning for a comma, a leading `-` and much else.
PLAIN: dict[Shell, re.Pattern[str]] = {
    "posix": re.compile(r"[\w@%+:,./-][\w@%+=:,./-]*", re.ASCII),
    "powershell": re.compile(r"[\w./\\:][\w.=/\\:+-]*|--?[\w-]+", re.ASCII),
}
PLAIN["pwsh"] = PLAIN["cmd"] = PLAIN["powershell"]
QUOTES = ("'", '"')
SINGLE_QUOTES = "'\u2018\u2019\u201a\u201b"  # PowerShell treats each of these as one


def typed_line(words: Sequence[str], shell: Shell | None = None) -> str:
    """Return the command line that passes exactly these words to a program.

    Args:
        words: The program and its arguments.
        shell: `posix` for bash and zsh, `powershell` for Windows PowerShell, `pwsh` for PowerShell 7.3 and later,
            `cmd` for the command prompt of Windows; None for the shell of this process.
    """
    shell = shell or _shell_here()
    line = " ".join(shell_word(word, shell) for word in words)
    if shell in ("powershell", "pwsh") and not PLAIN[shell].fullmatch(words[0]):
        line = f"& {line}"
    return line


def shell_word(word: str, shell: Shell | None = None) -> str:
    """Return a word for the command line, in quotes if needed."""
    shell = shell or _shell_here()
    if PLAIN[shell].fullmatch(word):
        return word
    if shell == "posix":
        return _posix(word)
    if shell == "cmd":
        return _cmd(word)
    if shell == "powershell":  # it passes quotes on unchanged, and the program parses them again
        word = re.sub(r'(\\*)"', r'\1\1\\"', word)
        if re.search(r"\s", word):
            word = re.sub(r"\\+\Z", lambda found: 2 * found[0], word)
        word = word or '""'
    return "'" + re.sub(f"[{SINGLE_QUOTES}]", r"\g<0>\g<0>", word) + "'"


def install_line(extra: str) -> str:
    """Return the command that installs an extra of this package."""
    return f"pip install {shell_word(f'samout_train[{extra}]')}"


def quoted(text: str) -> str:
    """Return a text quoted and escaped so that Hydra and OmegaConf read the same text."""
    # A backslash is special only before a character that it can escape, so it is doubled only there.
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)
    text = re.sub(r"(\\*)'", lambda found: 2 * found[1] + r"\'", text)
    text = re.sub(r"\\+\Z", lambda found: 2 * found[0], text)
    return f"'{text}'"


def list_setting(key: str, texts: Sequence[str]) -> str:
    """Return `key=['a','b']` for Hydra; it still needs quotes for the shell."""
    return f"{key}=[{','.join(map(quoted, texts))}]"


def text_setting(key: str, text: object) -> str:
    """Return `key=text` for the program, in quotes only if the text would have a meaning for Hydra."""
    word = str(text)
    if "${" in word or word[:1] in QUOTES or word == "null":
        word = quoted(word)
    return f"{key}={word}"


def shown_path(path: Path) -> str:
    """Return a path for messages: relative if it lies below the working directory."""
    path = Path.cwd() / path  # an absolute path stays as it is
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    if str(path).startswith("~"):  # a name that begins with ~, not a home directory
        return f"./{path}"
    return str(path)


def program_file() -> str:
    """Return the path of Python with its folder, so that the shell does not search PATH."""
    return _with_folder(Path(sys.executable))


def program() -> list[str]:
    """Return the words that started this program: its own command, or Python and the name of the package."""
    command = Path(*sys.argv[:1])
    if command.name.startswith("samout-train") and command.is_file():
        found = shutil.which(command.name)
        if found is not None and Path(found).resolve() == command.resolve():
            return [command.name]
        return [_with_folder(command)]
    return [program_file(), "-m", "samout_train"]


def _with_folder(path: Path) -> str:
    shown = shown_path(path)
    if not re.search(r"[/\\]", shown):
        shown = f"./{shown}"
    return shown


def dashboard_command(folder: Path) -> str:
    """Return the command that shows all runs of a folder in TensorBoard."""
    logdir = shown_path(folder)
    if logdir.startswith("-"):
        logdir = f"./{logdir}"
    # With -P, no file of the working directory hides a module that TensorBoard needs.
    return typed_line([program_file(), "-P", "-m", "tensorboard.main", "--logdir", logdir])


def _shell_here() -> Shell:
    """Return the shell of this process; a POSIX shell on Windows, such as that of Git, sets SHELL."""
    if sys.platform != "win32" or os.environ.get("SHELL"):
        return "posix"
    modules = os.environ.get("PSMODULEPATH", "")
    if re.search(r"powershell[\\/_]7", modules, re.IGNORECASE):
        return "pwsh"
    # Only a PowerShell session adds the folder of the user's own modules. The command prompt always sets PROMPT.
    in_session = re.search(r"(?<!Program Files)\\WindowsPowerShell\\Modules", modules, re.IGNORECASE)
    if os.environ.get("PROMPT") and not in_session:
        return "cmd"
    return "powershell"


def _cmd(word: str) -> str:
    """Return a word in double quotes, in which only % keeps a meaning.

    Within them, two double quotes are one for the C runtime, and the command prompt's quotes stay paired.
    """
    word = re.sub(r'(\\*)"', r'\1\1""', word)
    word = re.sub(r"\\+\Z", lambda found: 2 * found[0], word)
    return f'"{word}"'


def _posix(word: str) -> str:
    if any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in word):
        return _ansi_c(word)
    if "'" not in word:
        return f"'{word}'"
    if not re.search(r'["$`\\!]', word):  # within double quotes, an interactive shell expands !
        return f'"{word}"'
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _ansi_c(word: str) -> str:
    r"""Return `$'...'`, which keeps control characters and undecodable bytes on one line."""
    escaped = ""
    for char in word:
        if char in "\\'":
            escaped += f"\\{char}"
        elif char < " " or char == "\x7f" or "\udc80" <= char <= "\udcff":
            escaped += "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
        else:
            escaped += char
    return f"$'{escaped}'"
