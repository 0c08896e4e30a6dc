"""What narrow networks answer to one picture, kept in tests/data/golden.npz (this file writes it).

Weights and picture are formulas, so that they are the same with every version of PyTorch and NumPy. The file
was written by networks that equal the original's outputs at full width (tests/unit/test_networks.py).
"""

import zlib
from pathlib import Path

import numpy as np
import torch

from export.networks import STEMS, CenterNet, create

ARCHITECTURES = {"dla_34": 0.25, "dlav0_34": 0.25, "resdcn_18": 0.125, "mobilenetv2": 0.5, "tracks": 0.25}
"""Their width; `tracks` is a dla_34 that reads the frame before, too."""

HEADS = {"hm": 3, "reg": 2, "wh": 2}
FILE = Path(__file__).parent / "data" / "golden.npz"


def waves(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers from -1 to 1 without a pattern that a convolution would see."""
    count = int(np.prod(shape))
    phase = zlib.crc32(name.encode()) % 10007
    values = np.sin((np.arange(count, dtype=np.float64) + phase) * 12.9898) * 43758.5453
    return torch.from_numpy((2 * (values - np.floor(values)) - 1).astype(np.float32).reshape(shape))


def network(arch: str) -> CenterNet:
    stems = tuple(STEMS) if arch == "tracks" else ()
    made = create("dla_34" if stems else arch, HEADS, width=ARCHITECTURES[arch], stems=stems)
    return with_formulas(made)


def with_formulas(made: CenterNet) -> CenterNet:
    """Gives a network its weights."""
    state = made.state_dict()
    for name, tensor in state.items():
        if not tensor.dtype.is_floating_point:
            continue
        wave = waves(name, tuple(tensor.shape))
        if (
            tensor.ndim > 1
        ):  # keeps the size of what goes through; offsets vary little, else nothing is repeatable
            gain = 0.02 if "offset" in name else 1.5
            wave = wave * gain / (tensor[0].numel() / 3) ** 0.5
        elif name.endswith(("running_var", "weight")):
            wave = 1 + wave / 4
        else:
            wave = wave / 4
        state[name] = wave
    made.load_state_dict(state)
    return made.eval()


@torch.inference_mode()
def outputs(arch: str) -> dict[str, np.ndarray]:
    """Raw heads [1, C, 16, 24] of one picture."""
    made = network(arch)
    previous = [waves(stem, (1, STEMS[stem], 64, 96)) for stem in made.stems]
    found = made(waves("picture", (1, 3, 64, 96)), *previous)
    return {f"{arch}/{head}": values.numpy() for head, values in found.items()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: v for arch in ARCHITECTURES for name, v in outputs(arch).items()})
