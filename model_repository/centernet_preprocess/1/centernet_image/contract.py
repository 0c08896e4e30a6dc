"""What every layer agrees on: tensor names, types and shapes, normalisation, class names.

Shapes are per picture, without the batch dimension; -1 is a size that the exported network decides.
"""

from dataclasses import dataclass, replace

TOP_K = 100
"""Detections per picture."""

STRIDE = 4
"""Pixels of the frame per cell of the heat map."""

SIDE_MULTIPLE = 32
"""The frame's height and width are multiples of this: the deepest feature map has this stride."""

INPUT_SIZE = (512, 512)
"""Default height and width of the frame, pixels."""

SCORE_THRESHOLD = 0.3
"""Default of the postprocess model's parameter and of the request parameter with the same name."""


@dataclass(frozen=True)
class Normalisation:
    """What a network was trained on: (pixel / 255 - mean) / std, by channel in the network's order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


COCO = Normalisation((0.408, 0.447, 0.470), (0.289, 0.274, 0.278))
"""CenterNet's own for its networks of COCO, and the default."""

NORMALISATIONS = {
    "coco": COCO,
    # What others have for RGB; CenterNet's Pascal and KITTI networks were trained with it on BGR.
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

HEADS = ("hm", "reg", "wh")
"""Outputs of the raw-heads ONNX form, in this order."""

RAW_INPUT = "input"
"""Input of the raw-heads ONNX form: FP32 [3, H, W], normalised, in the network's order of channels."""

RAW_PREVIOUS = "previous_input"
"""The same of the frame before, for networks that read it."""

COLORS = ("bgr", "rgb")
"""Orders of the channels that a network reads; the frame is BGR for all."""


@dataclass(frozen=True)
class Tensor:
    """A named tensor: `dtype` as Triton writes it (without TYPE_), `shape` per picture."""

    name: str
    dtype: str
    shape: tuple[int, ...]


IMAGE = Tensor("image", "STRING", (1,))
FRAME = Tensor("frame", "UINT8", (-1, -1, 3))
IMAGE_SIZE = Tensor("image_size", "INT32", (2,))
BOXES = Tensor("boxes", "FP32", (-1, 4))
SCORES = Tensor("scores", "FP32", (-1,))
CLASSES = Tensor("classes", "INT32", (-1,))
PEAKS = Tensor("peaks", "FP32", (-1, -1))
"""The network's other outputs side by side: a row holds a peak's box, score, class and its task's values.

The server asks for this one alone: Triton's Python backend fetches each tensor of each request from a GPU by
itself, and waits for it.
"""

NUM_DETECTIONS = Tensor("num_detections", "INT32", (1,))
DETECTION_BOXES = Tensor("detection_boxes", "FP32", (-1, 4))
DETECTION_SCORES = Tensor("detection_scores", "FP32", (-1,))
DETECTION_CLASSES = Tensor("detection_classes", "INT32", (-1,))
DETECTION_LABELS = Tensor("detection_labels", "STRING", (-1,))

DETECTIONS = (NUM_DETECTIONS, DETECTION_BOXES, DETECTION_SCORES, DETECTION_CLASSES, DETECTION_LABELS)

FITS = ("whole", "longest", "width", "letterbox")
"""How a picture is laid into the frame.

whole: scaled to lie in the frame, centre on centre, black outside (CenterNet).
longest: its longer side scaled to the frame's width, centre on centre; whole in a square frame (CenterTrack).
width: scaled to the frame's width, centre on centre; rows outside are lost (CenterNet's `ddd`).
letterbox: resized by area, then padded with grey on both sides (FairMOT).
"""


@dataclass(frozen=True)
class Task:
    """What a kind of network has beyond a detector, for the picture's `TOP_K` best peaks.

    Attributes:
        heads: Heads of a checkpoint by which the task is known, beyond `hm`.
        inputs: Inputs of the network beyond `frame`.
        optional: Names of those that some networks lack.
        peaks: Outputs of the network beyond `boxes`, `scores`, `classes` and the `PEAKS` of them all, in
            pixels of the frame; at most one dimension beyond K is open.
        requests: Inputs of the ensemble beyond `image`.
        answers: Outputs of the ensemble beyond `DETECTIONS`, in pixels of the picture.
        fit: Its own of `FITS`.
    """

    heads: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    optional: tuple[str, ...] = ()
    peaks: tuple[Tensor, ...] = ()
    requests: tuple[Tensor, ...] = ()
    answers: tuple[Tensor, ...] = ()
    fit: str = "whole"

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """What `PEAKS` is made of, in its order."""
        return (BOXES, SCORES, CLASSES, *self.peaks)


TASKS = {
    "detect": Task(),
    "keypoints": Task(
        heads=("hps",),
        peaks=(Tensor("keypoints", "FP32", (-1, -1, 2)),),
        answers=(Tensor("detection_keypoints", "FP32", (-1, -1, 2)),),
    ),
    "boxes3d": Task(
        heads=("dep", "rot", "dim"),
        # Of the centre; angles in radians, as the object is seen; height, width, length in metres.
        peaks=(
            Tensor("centers", "FP32", (-1, 2)),
            Tensor("depths", "FP32", (-1,)),
            Tensor("alphas", "FP32", (-1,)),
            Tensor("dimensions", "FP32", (-1, 3)),
        ),
        # The projection from metres to pixels of the picture.
        requests=(Tensor("camera", "FP32", (3, 4)),),
        # The middle of the bottom, metres; turn around the vertical axis.
        answers=(
            Tensor("detection_locations", "FP32", (-1, 3)),
            Tensor("detection_dimensions", "FP32", (-1, 3)),
            Tensor("detection_rotations", "FP32", (-1,)),
        ),
        fit="width",
    ),
    "embeddings": Task(
        heads=("id",),
        peaks=(Tensor("embeddings", "FP32", (-1, -1)),),
        answers=(Tensor("detection_embeddings", "FP32", (-1, -1)),),
        fit="letterbox",
    ),
    "tracks": Task(
        heads=("tracking",),
        inputs=(Tensor("previous_frame", "UINT8", (-1, -1, 3)), Tensor("previous_heat", "FP32", (-1, -1))),
        optional=("previous_heat",),
        # From the centre in this frame back to that in the one before.
        peaks=(Tensor("centers", "FP32", (-1, 2)), Tensor("displacements", "FP32", (-1, 2))),
        answers=(Tensor("detection_tracks", "INT32", (-1,)),),
        fit="longest",
    ),
}
"""By name; every network is one of them."""

TASKS["landmarks"] = replace(TASKS["keypoints"], heads=("landmarks",))


def models(name: str, task: Task) -> dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Inputs and outputs of each model that serves a task under `name`.

    With inputs of its own (`Task.inputs`), the network wants a stream: `name` then is no ensemble but keeps
    them. All other networks are asked by `NAME_preprocess`.
    """
    answers = (*DETECTIONS, *task.answers)
    served = {
        name: ((IMAGE, *task.requests), answers),
        f"{name}_preprocess": ((IMAGE,), (FRAME if task.inputs else PEAKS, IMAGE_SIZE)),
        f"{name}_network": ((FRAME, *task.inputs), (*task.columns, PEAKS)),
        f"{name}_postprocess": ((PEAKS, IMAGE_SIZE, *task.requests), answers),
    }
    if task.inputs:
        del served[f"{name}_postprocess"]
    return served


MODELS = models("centernet", TASKS["detect"]) | {"centernet_frames": ((FRAME, IMAGE_SIZE), DETECTIONS)}
"""Of the detector's repository."""

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""The 80 classes of COCO, in the order of their category ids: the labels of a network whose `hm` has 80."""
