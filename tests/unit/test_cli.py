import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from isthmus import __version__
from isthmus.cli import main as cli_main
from isthmus.errors import IsthmusError

RUN = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]


def isthmus(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_version() -> None:
    done = isthmus("--version")
    assert (done.returncode, done.stdout) == (0, f"isthmus {__version__}\n")


def test_help_names_every_command_and_imports_none() -> None:
    code = (
        "import sys, atexit\n"
        "from isthmus.cli.main import main\n"
        "atexit.register(lambda: print(sorted(m for m in sys.modules if 'isthmus.' in m)))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, (_, line) in cli_main.COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert line in done.stdout
    loaded = done.stdout.splitlines()[-1]
    assert loaded == "['isthmus.cli', 'isthmus.cli.main', 'isthmus.errors']"


@pytest.mark.parametrize("name", cli_main.COMMANDS)
def test_every_command_exists_and_its_help_has_examples(name: str) -> None:
    module = cli_main.COMMANDS[name][0].partition(":")[0]
    assert importlib.util.find_spec(module) is not None, f"{module} is in the table and not there"
    command = cli_main.cli.get_command(click.Context(cli_main.cli), name)
    assert isinstance(command, click.Command)
    for each in [command, *(command.commands.values() if isinstance(command, click.Group) else ())]:
        text = each.get_help(click.Context(each, info_name=name))
        assert "Examples:" in text, each.name
        assert f"isthmus {name}" in text, each.name
        assert "--verbose" in text, each.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demoo"], "did you mean 'demo'?"),
        (["--nope"], "--nope"),
        (["completion", "tcsh"], "tcsh"),
        (["completion"], "Missing argument"),
    ],
)
def test_bad_usage_is_one_line_with_a_way_on(arguments: list[str], message: str) -> None:
    done = isthmus(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("isthmus: error: ")
    assert message in first
    assert second.startswith("  see `isthmus")


def test_no_arguments_show_the_help_as_a_usage_error() -> None:
    done = isthmus()
    assert done.returncode == 2
    assert "Examples:" in done.stderr


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli_main.LazyGroup, "get_command", lambda *_: fail)
    with pytest.raises(SystemExit) as ended:
        cli_main.main(["doctor"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("kind", [IsthmusError, *IsthmusError.__subclasses__()])
def test_each_error_has_its_exit_code(
    kind: type[IsthmusError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, kind("it\nbroke", remedy="mend it")) == kind.exit_code
    assert capsys.readouterr().err == "isthmus: error: it broke\n  mend it\n"


def test_the_exit_codes_are_those_of_the_documentation() -> None:
    page = Path(__file__, "../../../docs/cli.md").resolve().read_text()
    kinds = [IsthmusError, *IsthmusError.__subclasses__()]
    for code in {0, cli_main.INTERRUPTED, *(kind.exit_code for kind in kinds)}:
        assert f"\n| {code} |" in page


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_130(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, error) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_news() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [*RUN, "completion", "bash"], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert done.stderr == b""
    assert done.returncode in {1, 141}  # click's own, or ours


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    done = isthmus("completion", shell)
    assert done.returncode == 0
    assert "_ISTHMUS_COMPLETE" in done.stdout


def test_tab_completes_commands() -> None:
    environment = {
        **os.environ, "COMP_WORDS": "isthmus d", "COMP_CWORD": "1",
        "_ISTHMUS_COMPLETE": "bash_complete",
    }  # fmt: skip
    assert isthmus(env=environment).stdout.split() == ["plain,demo", "plain,doctor"]
