"""A server's machine that vanishes without a word, and another one in its place."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from pictures import encode, picture
from protocols import PROTOCOLS

from clients import CenterNetClient, DeadlineError, RetryPolicy, UnavailableError, options

pytestmark = pytest.mark.server


class Network:
    """Forwards connections to a server, until it `vanishes`: they stay open, and nothing comes any more."""

    def __init__(self, target: str) -> None:
        self._target = target.split(":")
        self._silent = threading.Event()
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "127.0.0.1:{1}".format(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def vanish(self) -> None:
        self._silent.set()

    def come_back(self) -> None:
        """New connections are served; the old ones stay silent."""
        self._silent = threading.Event()

    def close(self) -> None:
        for one in (self._listener, *self._kept):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._kept.append(near)
            if self._silent.is_set():
                continue
            far = socket.create_connection((self._target[0], int(self._target[1])))
            self._kept.append(far)
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(*ends, self._silent), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if silent.is_set():
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture(params=PROTOCOLS)
def network(request: pytest.FixtureRequest, server) -> Iterator[tuple[str, Network]]:
    network = Network(getattr(server, f"{request.param}_url"))
    yield request.param, network
    network.close()


def test_silence_costs_waiting_not_results(network: tuple[str, Network]) -> None:
    protocol, machine = network
    retry = RetryPolicy(timeout_s=3, deadline_s=90, longest_pause_s=0.2)
    data = encode(picture(60, 80))
    with CenterNetClient(machine.url, protocol=protocol, retry=retry) as client:
        machine.vanish()  # Before the first connection, then with one that has served.
        for _ in range(2):
            begin = time.monotonic()
            threading.Timer(3.5, machine.come_back).start()
            assert len(client.detect(data, threshold=0.0)) == 100
            assert time.monotonic() - begin > 3
            machine.vanish()


def test_a_machine_that_stays_away_ends_the_run(network: tuple[str, Network]) -> None:
    protocol, machine = network
    retry = RetryPolicy(timeout_s=0.5, deadline_s=1.5)
    with CenterNetClient(machine.url, protocol=protocol, retry=retry) as client:
        machine.vanish()
        with pytest.raises(DeadlineError, match=r"no answer within \d+\.\d s") as silence:
            client.detect(b"picture")
        with pytest.raises(UnavailableError, match="the server has gone after 3 pictures: no Triton server"):
            options.end_if_gone(client, silence.value, "3 pictures")
        machine.come_back()


def test_a_server_that_is_only_slow_does_not_end_the_run(server) -> None:
    with CenterNetClient(server.grpc_url) as client:
        options.end_if_gone(client, DeadlineError("no answer within 60 s"), "3 pictures")
