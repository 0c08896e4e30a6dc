"""Offline runs on a real local Ray with two workers."""

import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow
import pytest
from pictures import encode, picture
from pyarrow import parquet
from servers import ROOT, make_repository

from clients import batch
from server.launcher import family

pytestmark = pytest.mark.server
COUNT = 22
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel's tables have them."""


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Encoded pictures by name, and what is none."""
    found = {f"{seed:02}.jpg": encode(picture(60, 80, seed=seed), "JPEG") for seed in range(COUNT)}
    return found | {"bad.jpg": b"no picture", "empty.png": b""}


@pytest.fixture(scope="module")
def folder(contents, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def batch_server(serve, small_onnx, tmp_path_factory):
    return serve(make_repository(tmp_path_factory.mktemp("batch"), small_onnx))


@pytest.fixture(scope="module")
def expected(batch_server, folder, tmp_path_factory) -> dict[str, dict]:
    """What detect.py writes, by the file's name."""
    path = tmp_path_factory.mktemp("detect") / "out.jsonl"
    command = [sys.executable, "clients/detect.py", folder, "--url", batch_server.grpc_url, "--json", path]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1  # two bad pictures
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == COUNT
    assert sum(len(row["detections"]) for row in rows) > COUNT
    return {Path(row["image"]).name: row for row in rows}


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "clients/batch.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def run(*arguments: object) -> tuple[int, str]:
    process = start(*arguments)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def lines(output: Path) -> dict[str, dict]:
    """All rows of a run, by picture; none is there twice."""
    text = [path.read_text(encoding="utf-8") for path in sorted(output.glob("part-*.jsonl"))]
    rows = [json.loads(line) for line in "".join(text).splitlines()]
    found = {row["image"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def assert_same(row: dict, expected: dict) -> None:
    assert len(row["detections"]) == len(expected["detections"])
    for one, other in zip(row["detections"], expected["detections"], strict=True):
        assert (one["label"], one["class_id"]) == (other["label"], other["class_id"])
        assert one["score"] == pytest.approx(other["score"], abs=2e-4)
        assert one["xyxy"] == pytest.approx(other["xyxy"], abs=0.05)


def test_servers(batch_server, folder, expected, tmp_path):
    """One of the two addresses is nobody's: its share goes to the other."""
    output = tmp_path / "out"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Nor becomes another test's server's.
        port = nobody.getsockname()[1]
        code, said = run(
            *(folder, output, "--url", f"127.0.0.1:{port}", "--url", batch_server.grpc_url),
            *("--format", "jsonl", "--shard-size", "6"),
        )
    assert code == 0, said
    assert f"{COUNT + 2} pictures in 4 shards, 2 of them with an error" in said
    rows = lines(output)
    assert set(rows) == {str(path) for path in folder.iterdir()}
    for name, row in expected.items():
        assert rows[str(folder / name)].keys() == row.keys()
        assert_same(rows[str(folder / name)], row)
    assert rows[str(folder / "bad.jpg")]["error"].startswith("image: found 10 bytes beginning b'no pictu'")
    assert "error" in rows[str(folder / "empty.png")]


def test_network_on_parquet_and_webdataset(folder, contents, expected, small_onnx, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    table = pyarrow.table(
        {"key": list(contents), "jpg": pyarrow.array([*contents.values()], pyarrow.binary())}
    )
    table = pyarrow.concat_tables(
        [table, pyarrow.table({"key": ["none"], "jpg": pyarrow.array([None], pyarrow.binary())})]
    )
    parquet.write_table(table, source / "a.parquet", row_group_size=8)
    with tarfile.open(source / "b.tar", "w") as archive:
        for name, content in contents.items():
            for member, data in ((name, content), (f"{Path(name).stem}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    code, said = run(
        *(source, f"file://{folder}/0*.jpg", output, "--network", small_onnx, "--column", "jpg"),
        *("--shard-size", "10"),
    )
    assert code == 0, said
    table = pyarrow.concat_tables(
        [parquet.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    )
    rows = {row["name"]: row for row in table.to_pylist()}
    names = {f"{source}/a.parquet#{number}": name for number, name in enumerate([*contents, "none"])}
    names |= {f"{source}/b.tar/{name}": name for name in contents}
    names |= {f"file://{folder}/0{number}.jpg": f"0{number}.jpg" for number in range(10)}
    assert set(rows) == set(names)
    assert table.num_rows == len(names)
    for key, row in rows.items():
        if names[key] not in expected:
            assert row["error"]
            assert row["boxes"] is None
            continue
        assert row["error"] is None
        assert row["num"] == len(row["scores"])
        found = zip(row["labels"], row["class_ids"], row["scores"], row["boxes"], strict=True)
        detections = [dict(zip(("label", "class_id", "score", "xyxy"), one, strict=True)) for one in found]
        assert_same({"detections": detections}, expected[names[key]])


class Piped:
    """A run whose last shard ends with a named pipe: its worker is at it for as long as the test wants."""

    def __init__(self, tmp_path: Path, folder: Path, onnx: Path) -> None:
        self.source, self.output = tmp_path / "in", tmp_path / "out"
        self.source.mkdir()
        for path in folder.glob("*.jpg"):
            (self.source / path.name).symlink_to(path)
        self.pipe = tmp_path / "pipe.png"  # Of a folder it would not be taken.
        os.mkfifo(self.pipe)
        self.last = self.output / "part-00003.jsonl"
        self._arguments = [
            self.source,
            self.pipe,
            self.output,
            "--network",
            onnx,
            "--format",
            "jsonl",
            "--shard-size",
            "6",
        ]

    def start(self) -> subprocess.Popen:
        self.process = start(*self._arguments)
        return self.process

    def wait_for_attempt(self, process: subprocess.Popen, number: int) -> int:
        """Process of the worker that is at the last shard for the `number`th time."""
        attempts = self.output / ".part-00003.attempts"
        while True:
            assert process.poll() is None, process.stderr.read()
            pids = attempts.read_text().split() if attempts.exists() else []
            # The run before has left its own behind.
            there = len(pids) == number and Path(f"/proc/{pids[-1]}").exists()
            if there and len(list(self.output.glob("part-*"))) == 3:
                return int(pids[-1])
            time.sleep(0.05)


@pytest.fixture
def piped(tmp_path, folder, small_onnx) -> Iterator[Piped]:
    made = Piped(tmp_path, folder, small_onnx)
    yield made
    if made.process.poll() is None:  # After a failure: it waits for the pipe.
        made.process.terminate()
        made.process.communicate(timeout=60)


def test_stopped_and_gone_on_with(piped, folder, expected):
    """And a worker is killed in the middle."""
    process = piped.start()
    piped.wait_for_attempt(process, 1)
    assert listening(process.pid)
    assert listening(process.pid) <= LOOPBACK
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    finished = {path: path.stat().st_mtime_ns for path in piped.output.glob("part-*")}
    assert len(finished) == 3
    assert not piped.last.exists()

    process = piped.start()
    os.kill(piped.wait_for_attempt(process, 1), signal.SIGKILL)
    content = (folder / "00.jpg").read_bytes()
    threading.Thread(target=piped.pipe.write_bytes, args=[content], daemon=True).start()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "3 of 4 shards are done already" in said
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    rows = lines(piped.output)
    assert set(rows) == {str(path) for path in (*piped.source.iterdir(), piped.pipe)}
    for name, row in expected.items():
        assert_same(rows[str(piped.source / name)], row)
    assert_same(rows[str(piped.pipe)], expected["00.jpg"])
    names = {"_plan.json", *(f"part-{number:05}.jsonl" for number in range(4))}
    assert {path.name for path in piped.output.iterdir()} == names


@pytest.mark.wide
def test_what_kills_each_worker_does_so_three_times(piped):
    process = piped.start()
    for number in (1, 2, 3):
        os.kill(piped.wait_for_attempt(process, number), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "shard 3: CenterNetError: its worker died 3 times" in said
    assert "not done: 1 shards (3); run the same command again to go on" in said
    assert not piped.last.exists()


def listening(pid: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal, at which a process and its children accept connections."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                sockets[f"socket:[{inode}]"] = local.partition(":")[0]
    found = set()
    for one in family(pid):
        for link in Path(f"/proc/{one}/fd").glob("*"):
            with suppress(OSError):  # closed meanwhile
                found.add(sockets.get(str(link.readlink()), ""))
    return found - {""}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["OUT"], 2, "expected INPUT... OUTPUT"),
        (["no-such-folder", "OUT"], 2, "no-such-folder: no such file"),
        (["ftp://host/pictures", "OUT"], 2, "ftp://host/pictures: "),
        (["gs://:::", "OUT"], 2, "gs://"),
        (["s3://user:secret@/x", "OUT"], 2, "s3://"),
        (["file:///no/such/folder", "OUT"], 2, "file:///no/such/folder: no pictures"),
        (
            ["PARQUET", "OUT"],
            2,
            "has no column 'image', found jpg, number: name that of the encoded pictures",
        ),
        (["PARQUET", "OUT", "--column", "number"], 2, "column 'number' is int64, expected binary"),
        (["BROKEN", "OUT"], 2, "no readable Parquet file"),
        (["FOLDER", "FULL"], 2, "is not empty and has no _plan.json"),
        (["FOLDER", "s3://bucket/out"], 2, "expected a folder that all workers see"),
        (["FOLDER", "OUT", "--network", "PARQUET"], 2, "no "),
        (["FOLDER", "OUT", "--network", "ONNX", "--url", "localhost:1"], 2, "exclude each other"),
        (
            ["FOLDER", "OTHER", "--network", "ONNX", "--threshold", "0.5"],
            2,
            "other inputs, shards, network: choose",
        ),
        (["FOLDER", "OUT", "--url", "localhost:1"], 1, "no Triton server answers at localhost:1"),
    ],
)
def test_misuse_is_one_line(arguments, code, said, folder, small_onnx, tmp_path, monkeypatch, capfd):
    for path in ("full/x", "other/_plan.json", "in/a.parquet", "in/broken.parquet"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("x", encoding="utf-8")
    table = pyarrow.table({"jpg": pyarrow.array([b""], pyarrow.binary()), "number": [1]})
    parquet.write_table(table, tmp_path / "in/a.parquet")
    plan = {"inputs": "", "shards": 0, "format": "parquet", "threshold": 0.5, "model": None, "network": ""}
    plan["camera"] = None
    (tmp_path / "other/_plan.json").write_text(json.dumps(plan), encoding="utf-8")
    names = {
        "OUT": tmp_path / "out",
        "FULL": tmp_path / "full",
        "OTHER": tmp_path / "other",
        "FOLDER": folder,
        "PARQUET": tmp_path / "in/a.parquet",
        "BROKEN": tmp_path / "in/broken.parquet",
        "ONNX": small_onnx,
    }
    words = [str(names.get(word, word)) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["batch.py", *words])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    try:
        found = batch.main()
    except SystemExit as end:
        found = end.code
    errors = capfd.readouterr().err
    assert (found, said in errors) == (code, True), errors
    assert "Traceback" not in errors
    assert "secret" not in errors
    assert not list(tmp_path.glob("out/part-*"))


def test_without_ray(monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["batch.py", "in", "out"])
    assert batch.main() == 2
    assert capfd.readouterr().err == (
        "batch.py: found no Ray Data: install it, for example pip install 'centernet-triton[batch]'\n"
    )
