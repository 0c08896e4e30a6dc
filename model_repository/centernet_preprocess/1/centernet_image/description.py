"""What the exporter wrote beside the network: `model.json`, one in each version's folder."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NETWORK = "centernet_network"


@dataclass(frozen=True)
class NetworkDescription:
    """The facts about a network that its neighbours need.

    Attributes:
        classes: Names, in the order of the network's class indices.
        frame_size: Height and width of the frame, pixels.
        top_k: Detections per picture.
    """

    classes: tuple[str, ...]
    frame_size: tuple[int, int]
    top_k: int

    @classmethod
    def read(cls, path: Path) -> "NetworkDescription":
        """Reads the description that `export.to_onnx` or `export.to_plan` wrote.

        Raises:
            FileNotFoundError: There is none; the text says how to make it.
            ValueError: It is not a description of a detector.
        """
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            height, width = facts["input_size"]
            return cls(tuple(map(str, facts["classes"])), (int(height), int(width)), int(facts["top_k"]))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no {path}: make the network first, for example "
                f"python -m export.to_onnx CHECKPOINT {path.with_suffix('.onnx')}"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} does not describe a detector, expected classes, input_size and top_k: "
                f"{type(error).__name__} {error}; export the network again"
            ) from error


class ServedNetwork:
    """The network beside a Python model, and the description of the version that is served.

    That is the highest version that the server has ready, whichever way it was loaded. The server is asked
    only if there are several to choose from; a description is read again when its file changes.

    Attributes:
        parameters: The Python model's own, as text.
        at_start: The description of the version that is likely to be served.
    """

    def __init__(self, args: dict[str, str], is_ready: Callable[..., bool]) -> None:
        """Finds the network, which need not be loaded yet.

        Args:
            args: What Triton passes to `initialize`. The parameter `network_description` names one file for
                all versions, in place of each version's `model.json`.
            is_ready: Triton's `pb_utils.is_model_ready`.

        Raises:
            FileNotFoundError: There is no description; the text says how to make one.
            ValueError: There is one, but not of a detector.
        """
        config = json.loads(args["model_config"])
        self.parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._is_ready = is_ready
        self._folder = Path(args["model_repository"]).parent / NETWORK
        given = self.parameters.get("network_description")
        self._given = Path(given) if given else None
        self._read: dict[Path, tuple[tuple[int, int], NetworkDescription]] = {}
        described = [version for version in self._versions() if self._path(version).is_file()]
        self._version = max(described or self._versions(), default=1)
        self.at_start = self._describe(self._version)

    def description(self) -> NetworkDescription:
        """Of the version that is served now.

        Raises:
            FileNotFoundError: This version has none.
            ValueError: It is not one of a detector.
        """
        versions = [] if self._given else self._versions()
        if len(versions) == 1:
            self._version = versions[0]
        elif versions:
            ready = (each for each in versions if self._is_ready(NETWORK, str(each)))
            # None while the network is loaded anew: what is still in flight came from the one before.
            self._version = next(ready, self._version)
        return self._describe(self._version)

    def _path(self, version: int) -> Path:
        return self._given or self._folder / str(version) / "model.json"

    def _versions(self) -> list[int]:
        """Those that the folder has, highest first."""
        try:
            names = [each.name for each in os.scandir(self._folder) if each.is_dir()]
        except OSError:  # no folder: a description was given, or will be missed
            return []
        return sorted((int(name) for name in names if name.isdecimal() and name[0] != "0"), reverse=True)

    def _describe(self, version: int) -> NetworkDescription:
        path = self._path(version)
        try:
            status = path.stat()
        except OSError:
            if path in self._read:  # of a version that is being taken away
                return self._read[path][1]
            return NetworkDescription.read(path)
        stamp = (status.st_mtime_ns, status.st_ino)
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = stamp, NetworkDescription.read(path)
        return self._read[path][1]
