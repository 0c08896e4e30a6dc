"""A camera that speaks RTSP (RFC 2326) over TCP, as far as a player of one stream asks for it."""

import io
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

TS_PACKET, TS_IN_RTP = 188, 7
MP2T = 33
"""RTP's type for MPEG transport streams, at 90 kHz (RFC 3551)."""

SDP = f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP {MP2T}\r\na=control:one\r\n"
ANSWERS = {
    "OPTIONS": "Public: DESCRIBE, SETUP, PLAY\r\n\r\n",
    "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n\r\n{SDP}",
    "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n",
    "PLAY": "Session: 1\r\n\r\n",
}


@contextmanager
def camera(clip: Path) -> Iterator[str]:
    """The address of a camera that sends a video file as H.264 and hangs up in its last frame."""
    transport = _transport_stream(clip)

    class Camera(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            method = ""
            while method != "PLAY":
                method = self.rfile.readline().decode().partition(" ")[0]
                if method not in ANSWERS:
                    return
                headers = dict(line.split(": ", 1) for line in iter(self._line, ""))
                answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{ANSWERS[method]}"
                self.wfile.write(answer.encode())
            step = TS_PACKET * TS_IN_RTP
            for number, start in enumerate(range(0, len(transport), step)):
                packet = struct.pack(">BBHII", 0x80, MP2T, number & 0xFFFF, 0, 1) + transport[start:][:step]
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)

        def _line(self) -> str:
            return self.rfile.readline().decode().strip()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Camera) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/camera"
        server.shutdown()


def _transport_stream(clip: Path) -> bytes:
    made = io.BytesIO()
    with av.open(str(clip)) as source, av.open(made, "w", format="mpegts") as target:
        given = source.streams.video[0]
        stream = target.add_stream("libx264", rate=given.average_rate, options={"crf": "15"})
        stream.width, stream.height, stream.pix_fmt = given.width, given.height, "yuv420p"
        for frame in source.decode(given):
            target.mux(stream.encode(frame.reformat(format="yuv420p")))
        target.mux(stream.encode(None))
    return made.getvalue()
