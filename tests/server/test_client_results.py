"""detect.py's results: names of any kind, in any locale, and what outlives a failure elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import clips
import exported
import pytest
from pictures import encode, picture

from clients import detect

pytestmark = pytest.mark.server

NAMES = [b"caf\xe9.png", "硬币 ç.png".encode(), b"line\nfeed.png", b"photo.jfif", b"photo.JPE", b"-x.png"]
PLAIN = encode(picture(60, 80))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, server) -> Callable[..., int]:
    """Runs detect.py's `main` in this process."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["detect.py", *map(str, arguments), "--url", server.grpc_url])
        return detect.main()

    return run


@pytest.fixture
def command(server) -> list[object]:
    """Runs detect.py as a process of its own."""
    return [sys.executable, detect.__file__, "--url", server.grpc_url]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with names of all kinds."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        (folder / os.fsdecode(name)).write_bytes(PLAIN)
    return folder


def name_of(entry: dict) -> bytes:
    return os.fsencode(Path(entry["image"]).name)


def names(results: Path) -> list[bytes]:
    text = results.read_text(encoding="utf-8")
    entries = json.loads(text) if results.suffix == ".json" else list(map(json.loads, text.splitlines()))
    assert all(entry["detections"] for entry in entries)
    return list(map(name_of, entries))


@pytest.mark.parametrize("form", ["out.json", "out.jsonl"])
def test_file_names_of_all_kinds(run, capsys, folder: Path, tmp_path: Path, form: str) -> None:
    (folder / os.fsdecode(b"br\xf6ken.png")).write_bytes(PLAIN[:60])
    (folder / "notes.txt").touch()
    (folder / "README").touch()
    (folder / "sub").mkdir()
    assert run(folder, "--json", tmp_path / form, "--output-dir", tmp_path / "out") == 1
    assert sorted(names(tmp_path / form)) == sorted(NAMES)
    drawings = {path.stem for path in (tmp_path / "out").iterdir()}
    assert {os.fsdecode(name).rpartition(".")[0] for name in NAMES} == drawings
    output = capsys.readouterr()
    note, failure = output.err.splitlines()
    assert note.endswith("in: not taken: 3 (1 no suffix, 1 .txt, 1 folder(s))")
    assert "ken.png" in failure
    assert "硬币 ç.png" in output.out


@pytest.mark.parametrize(("locale", "encoding"), [("C", ""), ("C.UTF-8", "ascii")])
def test_names_in_any_locale(command, folder: Path, locale: str, encoding: str) -> None:
    environment = {**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*command, folder, "--json", "-"], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    entries = json.loads(done.stdout.decode("utf-8"))
    assert sorted(map(name_of, entries)) == sorted(NAMES)
    labels = {found["label"] for entry in entries for found in entry["detections"]}
    assert labels
    assert labels <= set(exported.SMALL_CLASSES)
    for label in labels:
        assert label.encode() in done.stdout
    table = subprocess.run([*command, folder], env=environment, capture_output=True)
    assert (table.returncode, table.stderr) == (0, b"")
    assert b"caf" in table.stdout


def closed_pipe() -> int:
    """What `| true` leaves: the end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("form", ["out.json", "out.jsonl"])
def test_results_outlive_a_reader_that_goes(command, folder: Path, tmp_path: Path, form: str) -> None:
    pipe = closed_pipe()
    process = subprocess.Popen(
        [*command, folder, "--json", tmp_path / form], stdout=pipe, stderr=subprocess.PIPE
    )
    os.close(pipe)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (1, b"")
    assert sorted(names(tmp_path / form)) == sorted(NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"in", form}


def test_results_for_a_reader_that_goes_end_quietly(command, folder: Path) -> None:
    pipe = closed_pipe()
    process = subprocess.Popen([*command, folder, "--json", "-"], stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (1, b"")


def test_results_outlive_a_full_disk_of_the_table(command, folder: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*command, folder, "--json", tmp_path / "out.json"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == b"detect.py: error: No space left on device"
    assert sorted(names(tmp_path / "out.json")) == sorted(NAMES)


def test_results_that_cannot_be_written_end_the_run(run, capsys, folder: Path) -> None:
    assert run(folder, "--json", "/dev/full") == 1
    assert capsys.readouterr().err == "detect.py: cannot write /dev/full: No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_results_outlive_a_signal(command, tmp_path: Path, number: signal.Signals) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for index in range(3000):
        (pictures / f"{index:04}.png").symlink_to(tmp_path / "one.png")
    (tmp_path / "one.png").write_bytes(PLAIN)
    results, part = tmp_path / "out.json", tmp_path / ".out.part.json"
    results.write_text("an earlier run", encoding="utf-8")
    # A shell's background jobs ignore SIGINT from the start; that is not what is tested here.
    # `preexec_fn` would run Python between fork and exec, where gRPC's threads can end the new process.
    process = subprocess.Popen(
        ["env", "--default-signal=INT,HUP", *command, pictures, "--json", results],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not (part.exists() and part.read_bytes().count(b"\n") > 20):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    found = names(results)
    assert 20 <= len(found) < 3000
    assert found == [b"%04d.png" % index for index in range(len(found))]
    assert not part.exists()


def test_results_outlive_drawings_that_cannot_be_written(run, capsys, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PLAIN)
    clip = clips.write(tmp_path / "b.mp4", 12)
    for taken in ("a.png", "b.mp4"):
        (tmp_path / "out" / taken / "in the way").mkdir(parents=True)
    results = tmp_path / "out.jsonl"
    assert run(tmp_path / "a.png", clip, "--json", results, "--output-dir", tmp_path / "out") == 1
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(tmp_path / "a.png"), str(clip)]
    assert all("s a directory" in line for line in lines)
    assert names(results) == [b"a.png"] + [b"b.mp4"] * 12
    assert "in 12 frames" in output.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.mp4"]
