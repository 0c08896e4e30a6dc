"""The Kubernetes API as JSON over HTTP."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests

Object = dict[str, Any]
Found = TypeVar("Found")
JSON, MERGE = "application/json", "application/merge-patch+json"
LEFT_BY_KUBERNETES = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}


class RefusedError(Exception):
    """What the API server said no to, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Kind:
    """A kind of object, and the path of its API."""

    name: str
    prefix: str
    plural: str
    namespaced: bool
    verbs: tuple[str, ...]

    def path(self, namespace: str) -> str:
        return f"{self.prefix}/namespaces/{namespace}/{self.plural}" if self.namespaced else self.all

    @property
    def all(self) -> str:
        return f"{self.prefix}/{self.plural}"


class Api:
    """An API server, asked with all rights. Threads may share it."""

    def __init__(self, url: str, token: str, certificate: Path) -> None:
        self.url, self._certificate = url, str(certificate)
        self._headers = {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None, *, media: str = JSON, **query: str) -> Any:
        """Returns the answer's JSON, or its text where it is none.

        Raises:
            RefusedError: The server refused; the message is its own.
        """
        answer = requests.request(
            method,
            self.url + path,
            params=query,
            json=body,
            headers={**self._headers, "Content-Type": media},
            verify=self._certificate,
            timeout=30,
        )
        json = "json" in answer.headers.get("Content-Type", "")
        if not answer.ok:
            raise RefusedError(answer.status_code, answer.json().get("message", "") if json else answer.text)
        return answer.json() if json else answer.text

    def get(self, path: str, **query: str) -> Any:
        return self.ask("GET", path, **query)

    def items(self, path: str, **query: str) -> list[Object]:
        return self.get(path, **query)["items"]

    def merge(self, path: str, change: Object) -> Object:
        return self.ask("PATCH", path, change, media=MERGE)

    def create(self, thing: Object, namespace: str = "") -> Object:
        """Creates an object; a field that the server does not know is refused."""
        return self.ask("POST", self.kind(thing).path(namespace), thing, fieldValidation="Strict")

    def kind(self, thing: Object) -> Kind:
        version = thing["apiVersion"]
        return next(one for one in self._kinds(version) if one.name == thing["kind"])

    def knows(self, definition: Object) -> bool:
        """Whether the resource of a CustomResourceDefinition can be used."""
        path = f"{self.kind(definition).all}/{definition['metadata']['name']}"
        conditions = self.get(path).get("status", {}).get("conditions") or []
        return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

    def objects(self, namespace: str) -> set[tuple[str, str]]:
        """Kind and name of all that is in a namespace, without what Kubernetes itself puts there."""
        groups = self.get("/apis")["groups"]
        versions = ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]
        names = set()
        for kind in (kind for version in versions for kind in self._kinds(version)):
            if kind.namespaced and "list" in kind.verbs and kind.name != "Event":
                found = self.items(kind.path(namespace))
                names |= {(kind.name, thing["metadata"]["name"]) for thing in found}
        return names - LEFT_BY_KUBERNETES

    def _kinds(self, version: str) -> Iterator[Kind]:
        prefix = f"/{'api' if version == 'v1' else 'apis'}/{version}"
        for one in self.get(prefix)["resources"]:
            if "/" not in one["name"]:
                yield Kind(one["kind"], prefix, one["name"], one["namespaced"], tuple(one["verbs"]))


def say(text: str) -> None:
    """A line of what ci/kubernetes prints."""
    print(f"\n    {text}", end=" ", flush=True)


def wait_for(found: Callable[[], Found], what: str, *, timeout_s: float = 120) -> Found:
    """Returns the first true answer; fails after `timeout_s`, which only a fault takes."""
    end = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.2)
    return answer
