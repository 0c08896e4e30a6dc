"""What a served network says about itself: in the ONNX file's metadata and in the JSON file beside it."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import onnx
from centernet_image.contract import COCO, Normalisation

LATER = ("mean", "std")
"""Facts that older files lack: they have the defaults."""


@dataclass(frozen=True)
class Description:
    """Facts about an exported network.

    `input_size` is height and width in pixels; heads have no `top_k`; `mean` and `std` are a
    `Normalisation`'s.
    """

    arch: str
    form: str
    classes: list[str]
    input_size: list[int]
    top_k: int | None
    checkpoint_sha256: str
    mean: list[float] = field(default_factory=lambda: list(COCO.mean))
    std: list[float] = field(default_factory=lambda: list(COCO.std))

    @property
    def normalisation(self) -> Normalisation:
        """What the network wants of its pixels."""
        return Normalisation(tuple(self.mean), tuple(self.std))

    def to_metadata(self) -> dict[str, str]:
        """Each fact as text: strings as they are, anything else as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
        }

    def to_json(self, **further: Any) -> str:
        """The text of the JSON file, with `further` facts behind."""
        return json.dumps(asdict(self) | further, indent=1, ensure_ascii=False) + "\n"


def read(model: onnx.ModelProto) -> Description:
    """Reads the description back from an ONNX file's metadata.

    Raises:
        ValueError: The metadata lacks a fact; the message names the missing ones.
    """
    found = {entry.key: entry.value for entry in model.metadata_props}
    missing = [each.name for each in fields(Description) if each.name not in found and each.name not in LATER]
    if missing:
        raise ValueError(
            f"the ONNX file's metadata lacks {', '.join(missing)}: export it with export.to_onnx"
        )
    return Description(
        arch=found["arch"],
        form=found["form"],
        classes=json.loads(found["classes"]),
        input_size=json.loads(found["input_size"]),
        top_k=json.loads(found["top_k"]),
        checkpoint_sha256=found["checkpoint_sha256"],
        **{name: json.loads(found[name]) for name in LATER if name in found},
    )
