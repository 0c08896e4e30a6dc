"""What the exporter wrote beside the network: `model.json`, one in each version's folder."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from centernet_image.contract import COCO, PEAKS, Normalisation

TEXTS = ("arch", "form", "checkpoint_sha256", "task", "fit", "color")
"""Facts that metadata hold as they are, not as JSON."""

NEEDED = ("arch", "form", "checkpoint_sha256", "classes", "input_size", "top_k")
"""Facts in the metadata of every file; older ones lack the others."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Facts about an exported network: in the ONNX file's metadata, and in `model.json` beside it.

    Attributes:
        classes: Names, in the order of the network's class indices.
        input_size: Height and width of the frame, pixels.
        top_k: Detections per picture; None if the network answers raw heads.
        arch: The architecture's name.
        form: "detector" or "heads".
        checkpoint_sha256: Of the file that it was exported from.
        mean: Normalisation's, by channel.
        std: Normalisation's, by channel.
        task: One of `contract.TASKS`.
        fit: How pictures are laid into its frame: one of `contract.FITS`.
        color: The order of channels that the network reads, and `mean` and `std` have: one of
            `contract.COLORS`. The frame is BGR for all.
        inputs: Names of what the network reads; older files lack them.
        outputs: Names of what the network answers.
    """

    classes: tuple[str, ...]
    input_size: tuple[int, int]
    top_k: int | None
    arch: str = ""
    form: str = "detector"
    checkpoint_sha256: str = ""
    mean: tuple[float, ...] = COCO.mean
    std: tuple[float, ...] = COCO.std
    task: str = "detect"
    fit: str = "whole"
    color: str = "bgr"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Description":
        """Reads the description of a detector, which `export.to_onnx` or `export.to_plan` wrote.

        Raises:
            FileNotFoundError: There is none; the text says how to make it.
            ValueError: It is not a description of a detector.
        """
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls.of(facts | {"top_k": int(facts["top_k"])})
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

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Description":
        """Of facts as JSON has them; others are left alone, and older files lack those with a default."""
        height, width = facts["input_size"]
        given: dict[str, Any] = {name: str(facts[name]) for name in TEXTS if name in facts}
        given |= {name: tuple(map(float, facts[name])) for name in ("mean", "std") if name in facts}
        given |= {name: tuple(map(str, facts[name])) for name in ("inputs", "outputs") if name in facts}
        return cls(
            classes=tuple(map(str, facts["classes"])),
            input_size=(int(height), int(width)),
            top_k=facts["top_k"],
            **given,
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Description":
        """The inverse of `to_metadata`.

        Raises:
            ValueError: A fact is missing; the text names it.
        """
        missing = [name for name in NEEDED if name not in metadata]
        if missing:
            raise ValueError(
                f"the ONNX file's metadata lacks {', '.join(missing)}: export it with export.to_onnx"
            )
        own = {each.name for each in fields(cls)} & metadata.keys()
        return cls.of({name: metadata[name] if name in TEXTS else json.loads(metadata[name]) for name in own})

    @cached_property
    def labels(self) -> np.ndarray:
        """The names as the server answers them: UTF-8 bytes, object [C]."""
        return np.array([name.encode() for name in self.classes], object)

    @property
    def normalisation(self) -> Normalisation:
        """What the network wants of its pixels."""
        return Normalisation(self.mean, self.std)

    def check_served(self, path: Path) -> None:
        """Whether the server can serve the network of this file.

        Raises:
            ValueError: It was exported before the server asked for `contract.PEAKS`.
        """
        if PEAKS.name not in self.outputs:
            raise ValueError(
                f"{path}: found a network without the output {PEAKS.name}, expected one with it: export it "
                "again by export.to_onnx, then build its plan again, if it has one, by export.to_plan"
            )

    def to_metadata(self) -> dict[str, str]:
        """Each fact as text: strings as they are, anything else as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
        }

    def to_json(self, **further: Any) -> str:
        """The text of the JSON file, with `further` facts behind."""
        return json.dumps(asdict(self) | further, indent=1, ensure_ascii=False) + "\n"


class ServedNetwork:
    """The network beside a Python model, and the description of the version that is served.

    That is the highest version that the server has ready, whichever way it was loaded. The server is asked
    only if there are several to choose from; a description is read again when its file changes.

    Attributes:
        name: Its own: a Python model NAME_preprocess, NAME_postprocess or NAME belongs to NAME_network.
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
            ValueError: There is one, but not of a detector, or of one that is too old.
        """
        config = json.loads(args["model_config"])
        self.parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._is_ready = is_ready
        own = Path(args["model_repository"])
        self.name = f"{own.name.removesuffix('_preprocess').removesuffix('_postprocess')}_network"
        self._folder = own.parent / self.name
        given = self.parameters.get("network_description")
        self._given = Path(given) if given else None
        self._read: dict[Path, tuple[tuple[int, int], Description]] = {}
        described = [version for version in self._versions() if self._path(version).is_file()]
        self._version = max(described or self._versions(), default=1)
        self.at_start = self._describe(self._version)

    def description(self) -> Description:
        """Of the version that is served now.

        Raises:
            FileNotFoundError: This version has none.
            ValueError: It is not one of a detector, or of one that is too old.
        """
        versions = [] if self._given else self._versions()
        if versions:
            self._version = self._served(versions)
        try:
            return self._describe(self._version)
        except FileNotFoundError:
            versions = self._versions()
            if not versions or self._version in versions:
                raise
            # It has been taken away since the folder was read.
            self._version = self._served(versions)
            return self._describe(self._version)

    def _served(self, versions: list[int]) -> int:
        if len(versions) == 1:
            return versions[0]
        ready = (each for each in versions if self._is_ready(self.name, str(each)))
        # None while the network is loaded anew: what is still in flight came from the one before.
        before = self._version if self._path(self._version) in self._read else versions[0]
        return next(ready, before)

    def _path(self, version: int) -> Path:
        return self._given or self._folder / str(version) / "model.json"

    def _versions(self) -> list[int]:
        """Those that the folder has, highest first."""
        try:
            names = [each.name for each in os.scandir(self._folder) if each.is_dir()]
        except OSError:  # no folder: a description was given, or will be missed
            return []
        return sorted((int(name) for name in names if name.isdecimal() and name[0] != "0"), reverse=True)

    def _describe(self, version: int) -> Description:
        path = self._path(version)
        try:
            status = path.stat()
        except OSError:
            if path in self._read:  # of a version that is being taken away
                return self._read[path][1]
            return self._load(path)
        stamp = (status.st_mtime_ns, status.st_ino)
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = stamp, self._load(path)
        return self._read[path][1]

    @staticmethod
    def _load(path: Path) -> Description:
        description = Description.read(path)
        description.check_served(path)
        return description
