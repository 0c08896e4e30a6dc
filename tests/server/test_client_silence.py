"""A server's machine that vanishes without a word, and another one in its place."""

import threading
import time
from collections.abc import Iterator

import pytest
from network import Network
from pictures import encode, picture
from protocols import PROTOCOLS

from clients import CenterNetClient, DeadlineError, RetryPolicy, UnavailableError, options

pytestmark = pytest.mark.server


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
