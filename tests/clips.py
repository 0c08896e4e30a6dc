"""Videos for tests: files whole, cut and trimmed, and a stream that breaks off."""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
from pictures import picture

from training import scenes

SIZE = (96, 64)
FPS = 12.5


def write(path: Path, frames: int = 40, codec: str = "mp4v") -> Path:
    """Writes a video of frames that differ."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, SIZE)
    assert writer.isOpened()
    for seed in range(frames):
        writer.write(picture(SIZE[1], SIZE[0], seed=seed))
    writer.release()
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    """Leaves the first part of a file, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def describe_first(path: Path) -> Path:
    """Moves an MP4 file's description before its frames, where files for the web have it."""
    content = path.read_bytes()
    begin = content.rindex(b"moov") - 4
    movie = bytearray(content[begin:])
    table = movie.index(b"stco") + 8
    (chunks,) = struct.unpack_from(">I", movie, table)
    for place in range(table + 4, table + 4 + 4 * chunks, 4):
        struct.pack_into(">I", movie, place, struct.unpack_from(">I", movie, place)[0] + len(movie))
    (first,) = struct.unpack_from(">I", content)
    path.write_bytes(content[:first] + movie + content[first:begin])
    return path


def trim(path: Path, hidden: int) -> Path:
    """Makes an MP4 file begin later without touching its frames, as phones do."""
    content = bytearray(path.read_bytes())
    (delta,) = struct.unpack_from(">I", content, content.index(b"stts") + 16)
    movie, edits = content.index(b"mvhd"), content.index(b"elst")
    timescale, duration = struct.unpack_from(">II", content, movie + 16)
    duration -= round(hidden * timescale / FPS)
    struct.pack_into(">I", content, movie + 20, duration)
    struct.pack_into(">II", content, edits + 12, duration, hidden * delta)
    path.write_bytes(content)
    return path


COINS = 24


def coins(path: Path, frames: int = 12, seed: int = 1) -> list[np.ndarray]:
    """Writes a video of `COINS` coins, whose rows pass each other; returns their boxes [COINS, 4] by frame.

    In 12 frames each goes further than its own size: places do not tell them apart. Seeds 1, 4 and 6 make
    coins that the demo's network is sure of, every one in every frame.
    """
    height, width, radius, step = 512, 600, 26, 6
    rng = np.random.default_rng(seed)
    background = scenes._background(rng, height, width)
    kinds = rng.integers(0, 2**31, COINS)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (width, height))
    assert writer.isOpened()
    truth = []
    for number in range(frames):
        canvas, boxes = background.copy(), []
        for coin, kind in enumerate(kinds):
            row, column = divmod(coin, 6)
            x = 45 + 85 * column + (step * number if row % 2 else 85 - step * number)
            at = (x, 64 + 128 * row)
            same = np.random.default_rng(kind)
            boxes.append(scenes._strike(same, canvas, at, radius, light=1.0, metal=0.6))
        writer.write((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
        truth.append(np.array(boxes))
    writer.release()
    return truth


def nothing() -> None:
    pass


@contextmanager
def stream(
    frames: int,
    *,
    jpeg: bytes | None = None,
    begin: Callable[[], None] = nothing,
    end: Callable[[], None] = nothing,
) -> Iterator[str]:
    """The address of a camera's motion JPEG over HTTP that breaks off in the frame after so many.

    Each client gets them from the beginning. Frames are all `jpeg`, or small ones that differ; `begin` is
    called before the first is sent, and `end` before the last.
    """

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(OSError):  # Who only asks what this is does not stay.
                begin()
                for seed in range(frames + 1):
                    one = jpeg or cv2.imencode(".jpg", picture(SIZE[1], SIZE[0], seed=seed))[1].tobytes()
                    header = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(one)}\r\n\r\n"
                    whole = header.encode() + one + b"\r\n"
                    if seed == frames - 1:
                        end()
                    self.wfile.write(whole if seed < frames else whole[:300])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/camera"
        server.shutdown()
