"""``isthmus translate`` without any guest: coverage, the module, and what cannot be used."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from isthmus.cli.translate import translate
from isthmus.errors import InputError
from isthmus.translate.coverage import features
from isthmus.translate.inside import build
from isthmus.translate.inside.admission import FILES
from isthmus.translate.table import Placement, translatable


@pytest.fixture
def isthmus(tmp_path):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), env=environment(tmp_path), cwd=tmp_path, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def command(*arguments: object) -> list[str]:
    start = [sys.executable, "-c", "from isthmus.cli.main import main; main()", "translate"]
    return start + [str(argument) for argument in arguments]


def environment(folder) -> dict[str, str]:
    return os.environ | {"ISTHMUS_STATE": f"{folder}/state", "ISTHMUS_RUN": f"{folder}/run"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nobody"], "no guest of that name"),
        (["status", "../x"], "not a guest name"),
        (["status", "--symbols", "x"], "--symbols needs a GUEST"),
        (["status", "--every", "nan"], "not a number"),
        (["attach", "nobody"], "no guest of that name"),
        (["attach", "nobody", "--warn-share", "0"], "warn-share"),
        (["attach", "nobody", "--warn-share", "nan"], "not a number"),
        (["detach", "nobody"], "no guest of that name"),
        (["coverage", "--feature", "sse9"], "no known CPU feature"),
        (["coverage", "--feature", "fpu"], "no instructions belong"),
        (["coverage", "--placement", "moon"], "moon"),
        (["metrics", "--textfile", "nowhere/x.prom"], "nowhere/x.prom"),
        (["metrics", "--textfile", "x", "--listen", ":1"], "exclude each other"),
        (["metrics", "--listen", "here"], "no address to listen at"),
        (["metrics", "--listen", "127.0.0.1:99999"], "no address to listen at"),
        (["metrics", "--listen", "nowhere.invalid:9177"], "nowhere.invalid"),
        (["module", "export", "."], "cannot be written"),
        (["module", "build", "--headers", "nowhere"], "holds no kernel headers"),
        (["module", "build"], "--headers"),
    ],
)
def test_bad_input_is_one_line_with_a_way_on(isthmus, arguments, message) -> None:
    done = isthmus(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("isthmus: error: ")
    assert message in first
    assert second.startswith("  ")


def test_a_failed_write_leaves_the_old_metrics_alone(isthmus, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    assert isthmus("metrics", "--textfile", "folder").returncode == 2
    assert isthmus("metrics", "--textfile", "x.prom").returncode == 0
    assert sorted(path.name for path in tmp_path.glob("*") if path.is_file()) == ["x.prom"]


def test_metrics_are_served_until_interrupted(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        taken = subprocess.run(
            command("metrics", "--listen", f"127.0.0.1:{port}"), env=environment(tmp_path),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert taken.returncode == 2
    # Where the tests run in the background, SIGINT may be ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        command("metrics", "--listen", f"127.0.0.1:{port}"), env=environment(tmp_path),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        address = server.stderr.readline().strip()
        assert address == f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(address, timeout=120) as answer:
            assert b"# TYPE isthmus_translated_total counter" in answer.read()
        server.send_signal(signal.SIGINT)
        assert server.wait(180) == 130
    finally:
        server.kill()
        server.wait()


def test_coverage_agrees_with_the_table(isthmus) -> None:
    for placement in Placement:
        done = isthmus("coverage", "--placement", placement.value, "--json")
        rows = json.loads(done.stdout)
        yes = {row["feature"] for row in rows if row["covered"] == "yes"}
        assert yes == translatable(placement)
        assert not [row["feature"] for row in rows if (row["covered"] == "yes") != (not row["why"])]


def test_coverage_says_why_not() -> None:
    def why(name: str, placement: Placement = Placement.OUTSIDE) -> str:
        (found,) = features(placement, name)
        return found.why

    assert "YMM" in why("avx2")
    assert why("avx2", Placement.INSIDE) == ""
    assert "LZCNT" in why("abm")
    assert why("avx512f")
    assert why("SSE4_1") == why("sse4.1")  # any spelling


def test_coverage_of_one_feature_names_its_instructions(isthmus) -> None:
    done = isthmus("coverage", "--feature", "sse4a")
    assert {"EXTRQ", "INSERTQ"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("lockdown", "enforced", "more", "code", "words"),
    [
        ("[none] integrity confidentiality", "N", [], 0, "takes it"),
        ("none [integrity] confidentiality", "N", [], 3, "locked down (integrity)"),
        ("[none] integrity confidentiality", "Y", [], 3, "enforces signatures"),
        ("none [integrity] confidentiality", "Y", ["--signed"], 0, "takes it"),
        (None, None, [], 0, "tainted"),
        ("\x00\xff nonsense", "N", [], 3, "not what a Linux kernel says"),
    ],
)
def test_the_guests_kernel_is_asked_whether_it_takes_the_module(
    isthmus, tmp_path, lockdown, enforced, more, code, words
) -> None:
    texts = (lockdown, enforced, "0\n")
    for name, text in zip(FILES, texts, strict=True):
        if text is not None:
            (tmp_path / "guest" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "guest" / name).write_text(text)
    done = isthmus("module", "check", "--root", "guest", *more)
    assert done.returncode == code, done.stderr
    assert words in done.stdout


def test_the_modules_sources_come_with_what_to_do_next(isthmus, tmp_path) -> None:
    done = isthmus("module", "export", "src")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "src" / "dkms.conf").is_file()
    for word in ("dkms add", "dkms install", "mokutil", "modprobe isthmus_translate"):
        assert word in done.stdout


def test_a_built_module_lies_where_it_was_wanted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "build", lambda headers, folder, files: b"ELF")
    for output, code in ((tmp_path / "guest.ko", 0), (tmp_path / "no" / "guest.ko", 1)):
        done = CliRunner().invoke(
            translate, ["module", "build", "--headers", str(tmp_path), "--output", str(output)]
        )
        assert done.exit_code == code
        if code:
            assert isinstance(done.exception, InputError)
        else:
            assert output.read_bytes() == b"ELF"
            assert f"sign-file sha256 MOK.priv MOK.der {output}" in done.output
            assert "modprobe isthmus_translate" in done.output
