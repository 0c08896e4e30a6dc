"""What the exporter wrote beside the network: `model.json`."""

import json
from dataclasses import dataclass
from pathlib import Path


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
    def of_model(cls, args: dict[str, str]) -> tuple["NetworkDescription", dict[str, str]]:
        """The network beside a Python model, and that model's own parameters.

        Args:
            args: What Triton passes to `initialize`. The parameter `network_description` names another file
                than the network's `1/model.json`.
        """
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        default = Path(args["model_repository"]).parent / "centernet_network" / "1" / "model.json"
        return cls.read(Path(parameters.get("network_description", default))), parameters

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
