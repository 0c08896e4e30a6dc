"""What lies between a client and a server, and can fail."""

import socket
import threading
from contextlib import suppress


class Network:
    """Forwards connections to a server, until it `vanishes`: they stay open, and nothing comes any more.

    Or until it `refuses`: they end, and so does each new one. While it is on `hold`, what is sent waits.
    """

    def __init__(self, target: str) -> None:
        self._target = target.split(":")
        self._silent = threading.Event()
        self._refusing = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "127.0.0.1:{1}".format(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def vanish(self) -> None:
        self._silent.set()

    def refuse(self) -> None:
        self._refusing = True
        for one in self._kept:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    def come_back(self) -> None:
        """New connections are served; the old ones stay silent."""
        self._silent = threading.Event()
        self._refusing = False

    def close(self) -> None:
        for one in (self._listener, *self._kept):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                near.close()
                continue
            self._kept.append(near)
            if self._silent.is_set():
                continue
            far = socket.create_connection((self._target[0], int(self._target[1])))
            self._kept.append(far)
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(*ends, self._silent), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                if silent.is_set():
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
