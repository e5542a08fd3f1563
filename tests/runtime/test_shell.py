"""What is printed works as it is printed: lines for shells, and values for Hydra."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from samout_train.cli.request import Request
from samout_train.config import compose_config, quote_text
from samout_train.runtime import (
    dashboard_command,
    home_expanded,
    home_path,
    list_setting,
    program,
    quoted,
    shell as shell_module,
    shell_word,
    shown_path,
    typed_line,
)
from tests.support.program import samout

NASTY = [
    *(
        "a b",
        "a,b",
        "a=b",
        "[a]",
        "{a}",
        "(a)",
        "it's",
        'say "a"',
        'it\'s "a"',
        "$HOME",
        "`id`",
        "a!b",
        "it's!",
        "~",
        "~/a",
    ),
    *(
        "#a",
        "%a",
        "a\\b",
        "a\\",
        "a b\\",
        "-a",
        "--help",
        "-a.b",
        "a\nb",
        "\ta",
        "文件 夹",
        "😀",
        "a;b",
        "a&b",
        "a|b",
        "<a>",
        "*",
        "?",
    ),
    *(
        "",
        "=a",
        "@a",
        "a:b",
        "^a",
        "a''b",
        '"',
        "'",
        "\\'",
        '\\"',
        "a\\\\b",
        'x="a b"',
        "C:\\Users\\me\\a b\\",
        "\u2019s",
        "\x1b",
        "é",
    ),
]
ECHO = "import json, os, sys; print(json.dumps([os.fsencode(word).hex() for word in sys.argv[1:]]))"
SAYS = "'import pathlib, sys; print([*map(str, [pathlib.Path(sys.argv[1]).resolve()])])' "
SETTINGS = ["data.path=a b,c=d", "data.paths=['a,b','it\\'s']", "run_dir=~/a", *NASTY]


def heard(shell: str, line: str) -> list[str]:
    done = subprocess.run([shell, "-c", line], capture_output=True, text=True, check=True)
    return [bytes.fromhex(word).decode("utf-8", "surrogateescape") for word in json.loads(done.stdout)]


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=pytest.mark.nightly)])
def test_a_shell_hears_the_words_that_were_meant(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    words = [*SETTINGS, "bytes\udcff"]
    line = typed_line([sys.executable, "-c", ECHO, *words], "posix")
    assert "\n" not in line
    assert heard(shell, line) == words


def test_plain_words_stay_as_they_are() -> None:
    assert typed_line(["samout-train", "model=v8", "optimizer.lr=1e-3"], "posix") == (
        "samout-train model=v8 optimizer.lr=1e-3"
    )
    assert shell_word("it's a", "posix") == '"it\'s a"'
    assert typed_line([r"C:\my python\python.exe", "a=b"], "pwsh") == r"& 'C:\my python\python.exe' a=b"


def powershell_words(line: str) -> list[str]:
    """Read a line by about_Parsing and about_Quoting_Rules: plain words, and verbatim strings with doubled quotes."""
    quote, words, position = "'\u2018\u2019\u201a\u201b", [], 0
    while position < len(line):
        if line[position] == " ":
            position += 1
        elif line[position] in quote:
            word, position = "", position + 1
            while not (line[position] in quote and line[position + 1 : position + 2] not in [*quote]):
                word, position = word + line[position], position + 1 + (line[position] in quote)
            words.append(word)
            position += 1
            assert line[position : position + 1] in ("", " ")
        else:
            word = re.match(r"\S+", line[position:])[0]  # type: ignore[index]
            assert not set(word) & set("\"'`$,;(){}[]|&<>@#%~*?!^=") - set("=")
            assert not re.match(r"-.*[.:]|=", word)
            words.append(word)
            position += len(word)
    return words


def windows_command_line(words: list[str]) -> str:
    """Join words as Windows PowerShell 5.1 does: quotes around those with blanks, and nothing escaped."""
    return " ".join(f'"{word}"' if re.search(r"\s", word) else word for word in words)


def windows_argv(line: str) -> list[str]:
    """Read a command line by the rules of the C runtime, "Parsing C command-line arguments"."""
    words, word, inside, begun, position = [], "", False, False, 0
    while position < len(line):
        slashes = len(re.match(r"\\*", line[position:])[0])  # type: ignore[index]
        position += slashes
        if line[position : position + 1] == '"':
            word += "\\" * (slashes // 2)
            if not slashes % 2 and inside and line[position + 1 : position + 2] == '"':  # "" within quotes
                word, position = word + '"', position + 2
                continue
            if slashes % 2:
                word += '"'
            else:
                inside = not inside
            begun, position = True, position + 1
            continue
        word, begun = word + "\\" * slashes, begun or bool(slashes)
        if position < len(line):
            if line[position].isspace() and not inside:
                words += [word] if begun else []
                word, begun = "", False
            else:
                word, begun = word + line[position], True
            position += 1
    return [*words, word] if begun else words


@pytest.mark.parametrize("word", SETTINGS)
def test_powershell_hears_the_words_that_were_meant_by_its_rules(word: str) -> None:
    # PowerShell 7.3 and later give a program the word itself; Windows PowerShell 5.1 joins without escapes.
    assert powershell_words(typed_line(["python", word, "b"], "pwsh")) == ["python", word, "b"]
    given = powershell_words(typed_line(["python", word, "b"], "powershell"))
    assert windows_argv(windows_command_line(given)) == ["python", word, "b"]


@pytest.mark.parametrize("word", [word for word in SETTINGS if "\n" not in word])  # a line end runs a line
def test_the_command_prompt_hears_the_words_that_were_meant_by_its_rules(word: str) -> None:
    line = typed_line([r"C:\Ann Lee\python.exe", word, "b"], "cmd")
    assert windows_argv(line) == [r"C:\Ann Lee\python.exe", word, "b"]
    assert not set(re.sub('"[^"]*"', "", line)) & set("&|<>^()%!,;'\"")  # within quotes, all but % are plain


MACHINE = r"C:\Program Files\WindowsPowerShell\Modules;C:\WINDOWS\system32\WindowsPowerShell\v1.0\Modules"
OWN = r"C:\Users\Ann\Documents\WindowsPowerShell\Modules;" + MACHINE


@pytest.mark.parametrize(
    ("variables", "shell"),
    [
        ({"PROMPT": "$P$G", "PSMODULEPATH": MACHINE}, "cmd"),
        ({"PROMPT": "$P$G"}, "cmd"),
        ({"PSMODULEPATH": OWN}, "powershell"),
        ({"PROMPT": "$P$G", "PSMODULEPATH": OWN}, "powershell"),  # started from the command prompt
        ({"PROMPT": "$P$G", "PSMODULEPATH": rf"C:\Program Files\PowerShell\7\Modules;{OWN}"}, "pwsh"),
        ({"PSMODULEPATH": r"C:\Program Files\WindowsApps\Microsoft.PowerShell_7.5.2.0_x64__8wek\Modules"}, "pwsh"),
        ({"SHELL": "/usr/bin/bash", "PROMPT": "$P$G"}, "posix"),
    ],
)
def test_the_shell_of_windows_is_told_by_its_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], shell: str
) -> None:
    for name in ("SHELL", "PROMPT", "PSMODULEPATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shell_module, "sys", SimpleNamespace(platform="win32"))
    assert shell_module._shell_here() == shell
    extra = {"posix": "'samout_train[fast]'", "cmd": '"samout_train[fast]"'}.get(shell, "'samout_train[fast]'")
    assert shell_module.install_line("fast") == f"pip install {extra}"


def received(override: str) -> Any:
    """Return what Hydra and OmegaConf make of the value of an override."""
    value = OverridesParser.create().parse_override(override).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[call-overload, index]


@pytest.mark.parametrize("text", [text for text in NASTY if text])
def test_text_arrives_in_runs_and_in_sweeps(text: str) -> None:
    assert received(quote_text(f"data.path={quoted(text)}", in_sweep=True)) == text
    if text[0] not in "'\"":  # those are Hydra's quotes
        assert received(quote_text(f"data.path={text}")) == text


def test_lists_of_paths_arrive() -> None:
    given = [*filter(None, NASTY)]
    assert received(quote_text(list_setting("data.paths", given))) == given


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ("[文件,a b]", ["文件", "a b"]),
        ("['a,b',c=d]", ["a,b", "c=d"]),
        ("a,b", ["a,b"]),
        ("[a[1],b{2}]", ["a[1]", "b{2}"]),
        ("[12,true]", ["12", "true"]),
        ('["it\'s", b]', ["it's", "b"]),
    ],
)
def test_lists_of_paths_are_typed_without_quotes(value: str, paths: list[str]) -> None:
    assert received(quote_text(f"data.paths={value}")) == paths


def test_a_role_is_text() -> None:
    assert received(quote_text("+data.roles.tool=<|user|>")) == "<|user|>"


def test_home_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {"run_dir": "~/a", "data": {"paths": ["~", "~/b", "c~", "./~x"], "roles": "~/c"}, "dir": "~nobody-here/a"}
    given |= {"storage": "sqlite:///~/s.db", "resume": None}
    assert home_expanded(given) == {
        "run_dir": "/home/me/a",
        "data": {"paths": ["/home/me", "/home/me/b", "c~", "./~x"], "roles": "~/c"},
        "dir": "~nobody-here/a",
        "storage": "sqlite:////home/me/s.db",
        "resume": None,
    }
    config = compose_config(["data=text", "data.path=~/a,b", "run_dir='~/r'", "hydra.sweep.dir=~/s"])
    assert (config.config["data"]["path"], config.config["run_dir"]) == ("/home/me/a,b", "/home/me/r")
    assert config.sweep_dir == "/home/me/s"


def test_a_comma_in_a_path_that_is_there_parts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.txt").touch()
    assert quote_text("data.path=a,b.txt,c d.txt", in_sweep=True) == "data.path='a,b.txt','c d.txt'"
    assert quote_text("data.paths=[a,b.txt,c]", in_sweep=False) == "data.paths=['a,b.txt','c']"
    assert quote_text("data.path='a,b','c'", in_sweep=True) == "data.path='a,b','c'"
    assert quote_text("data.path=choice(a,b)", in_sweep=True) == "data.path=choice(a,b)"
    assert quote_text("data.paths=[a,b],[c]", in_sweep=True) == "data.paths=['a','b'],['c']"
    assert quote_text("hydra.sweep.dir=a,b", in_sweep=True) == "hydra.sweep.dir='a,b'"


@pytest.mark.nightly
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_each_line_that_a_run_prints_works_when_it_is_typed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    folder = tmp_path / "my 文件 [1], it's $x=y"
    folder.mkdir()
    (folder / "a, b=(c).txt").write_text("some words to learn. " * 100, "utf-8")
    words = ["data=text", "data.path=a, b=(c).txt", "data.vocabulary=bytes", "data.seq_len=8", "trainer=debug"]
    words += ["model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "device=cpu", "run_dir=out {put}; !"]
    run_dir = folder / "out {put}; !"

    def typed(line: str) -> str:
        done = subprocess.run([shell, "-c", line], cwd=folder, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, line + done.stdout + done.stderr
        return done.stdout + done.stderr

    def printed(output: str, name: str) -> str:
        return re.findall(rf"^{name} +(.*)$", output, re.MULTILINE)[-1]

    first = samout(folder, *words)
    output = first.stdout + first.stderr
    assert first.returncode == 0, output
    typed(printed(output, "resume"))
    assert json.loads((run_dir / "summary.json").read_text("utf-8"))["steps"] == 4
    typed(printed(output, "repeat"))
    (repeated,) = (folder / "outputs" / "v8-text").iterdir()
    assert json.loads((repeated / "summary.json").read_text("utf-8"))["steps"] == 2
    assert str([str(folder)]) in typed(
        printed(output, "dashboard").replace(" -P -m tensorboard.main --logdir ", " -c " + SAYS)
    )
    found = samout(folder, "inspect", f"path={run_dir}")
    typed(printed(found.stdout, " *to generate") + " max_new_tokens=1")


@pytest.mark.parametrize("started_by", ["samout-train", "samout-train.exe"])
def test_a_printed_command_names_the_program_as_it_was_started(
    started_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "bin" / started_by
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bin/" + started_by, "seed=1"])
    assert program() == [f"bin/{started_by}"]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert program() == [started_by]
    monkeypatch.chdir(command.parent)
    monkeypatch.setattr("sys.argv", [started_by])
    monkeypatch.setenv("PATH", "")
    assert program() == [f"./{started_by}"]
    monkeypatch.setattr("sys.argv", ["-c", "train"])
    assert program() == [sys.executable, "-m", "samout_train"]


def test_a_dashboard_of_a_folder_with_a_dash_in_front_is_no_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dashboard_command(tmp_path / "-v").endswith(" --logdir ./-v")
    assert dashboard_command(tmp_path).endswith(" --logdir .")
    assert dashboard_command(tmp_path / "~root" / "runs").endswith(" --logdir './~root/runs'")
    assert home_path(shown_path(tmp_path / "~root")) == Path("~root") and shown_path(Path("/~root")) == "/~root"


def test_what_is_saved_has_the_paths_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    composed = compose_config(["data=shards", "data.paths=[~/x,y]", "run_dir=~/r"])
    saved = OmegaConf.to_container(OmegaConf.create(composed.yaml))
    assert saved == composed.config and composed.config["data"]["paths"] == ["/home/me/x", "y"]


@pytest.mark.parametrize("words", [["--config-dir", "~/mine"], ["--config-dir=~/mine"], ["-cd", "~/mine"]])
def test_the_folder_of_yaml_may_lie_at_home(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert str(tmp_path / "mine") in " ".join(Request(words).flags)
