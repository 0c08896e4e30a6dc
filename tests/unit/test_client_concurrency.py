"""How many requests are in flight at once, with a stand-in for the connection."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc

from clients import AsyncCenterNetClient, CenterNetClient, RetryPolicy, client

COUNT = 30
LIMIT_S = 10
"""Eight tasks of one loop are never that far apart; a request that waits for others in vain is."""

RESULT = {
    "num_detections": np.array([[0]], np.int32),
    "detection_boxes": np.zeros((1, 1, 4), np.float32),
    "detection_scores": np.zeros((1, 1), np.float32),
    "detection_classes": np.zeros((1, 1), np.int32),
    "detection_labels": np.array([[b""]], object),
}


class Transport:
    """Answers no request before `wanted` of them are in flight."""

    tensors = tritonclient.grpc

    def __init__(self, wanted: int) -> None:
        self.wanted, self.inside, self.most = wanted, 0, 0
        self.together = asyncio.Event()

    async def json(self, method: str, model: str) -> dict:
        assert method == "get_model_metadata"
        return {"name": model}

    async def call(self, method: str, *_: object, **__: object) -> object:
        assert method == "infer"
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == self.wanted:
            self.together.set()
        await self.together.wait()
        await asyncio.sleep(0)
        self.inside -= 1
        return SimpleNamespace(as_numpy=RESULT.get)

    async def close(self) -> None:
        pass


@pytest.fixture(params=[1, 3, 8])
def transport(request, monkeypatch):
    made = Transport(request.param)
    monkeypatch.setitem(client.TRANSPORTS, "grpc", lambda url, *, tls, headers: made)
    return made


def options(transport):
    # Eight is the default.
    given = {} if transport.wanted == 8 else {"concurrency": transport.wanted}
    return given | {"retry": RetryPolicy(retries=0, timeout_s=LIMIT_S, deadline_s=LIMIT_S)}


def check(transport, answers):
    assert [answer.picture for answer in answers] == [str(number).encode() for number in range(COUNT)]
    assert transport.most == transport.wanted


def pictures():
    return (str(number).encode() for number in range(COUNT))


def test_a_client_keeps_its_requests_in_flight(transport):
    answers = []
    with CenterNetClient(**options(transport)) as one:
        for answer in one.detect_many(pictures()):
            assert answer.error is None
            answers.append(answer)
    check(transport, answers)


def test_pictures_have_their_share_alone(transport):
    """Of eight requests in flight the others are for those whom other threads ask about."""
    more = {"retry": options(transport)["retry"], "concurrency": 8}
    with CenterNetClient(**more) as one:
        check(transport, list(one.detect_many(pictures(), share=lambda: transport.wanted)))


def test_an_asynchronous_client_does_so_too(transport):
    async def collect():
        answers = []
        async with AsyncCenterNetClient(**options(transport)) as one:
            async for answer in one.detect_many(pictures()):
                assert answer.error is None
                answers.append(answer)
        return answers

    check(transport, asyncio.run(collect()))
