"""What every layer agrees on: tensor names, types and shapes, normalisation, class names.

Shapes are per picture, without the batch dimension; -1 is a size that the exported network decides.
"""

from dataclasses import dataclass

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
    """What a network was trained on: (pixel / 255 - mean) / std, by channel in the frame's order, BGR."""

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
"""Input of the raw-heads ONNX form: FP32 [3, H, W], normalised BGR."""


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
NUM_DETECTIONS = Tensor("num_detections", "INT32", (1,))
DETECTION_BOXES = Tensor("detection_boxes", "FP32", (-1, 4))
DETECTION_SCORES = Tensor("detection_scores", "FP32", (-1,))
DETECTION_CLASSES = Tensor("detection_classes", "INT32", (-1,))
DETECTION_LABELS = Tensor("detection_labels", "STRING", (-1,))

DETECTIONS = (NUM_DETECTIONS, DETECTION_BOXES, DETECTION_SCORES, DETECTION_CLASSES, DETECTION_LABELS)

MODELS: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "centernet": ((IMAGE,), DETECTIONS),
    "centernet_frames": ((FRAME, IMAGE_SIZE), DETECTIONS),
    "centernet_preprocess": ((IMAGE,), (FRAME, IMAGE_SIZE)),
    "centernet_network": ((FRAME,), (BOXES, SCORES, CLASSES)),
    "centernet_postprocess": ((BOXES, SCORES, CLASSES, IMAGE_SIZE), DETECTIONS),
}
"""Inputs and outputs of each model of the repository."""

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
