"""The contents of encoder.json as one typed object."""

from dataclasses import asdict, dataclass
from typing import Any

OPTIONAL = ("init", "teacher", "decoder", "head", "fine_tuned")
"""Keys that encoder.json has only where they say something."""


@dataclass(frozen=True)
class InputConfig:
    """The input format of an encoder.

    Attributes:
        channels: input channels.
        size: pixels along each spatial axis; two values in 2D, three in 3D.
        spacing: mm per pixel, the same for all scans; None fits each scan into `size`.
        equalise: whether scans are histogram-equalised before resampling.
        mean, std: standardise intensities after the window [low, high] was mapped to [0, 1].
    """

    channels: int
    size: tuple[int, ...]
    spacing: float | None
    equalise: bool
    mean: float
    std: float


@dataclass(frozen=True)
class EncoderConfig:
    """The architecture, the input format and the origin of an encoder.

    Attributes:
        name, options, channels, size, dim: the class of the encoder (see `encoders.export.CLASSES`), its constructor's
            arguments, and the length of its features. Filled in by `save_encoder`.
        weights: BLAKE2b-128 digest of encoder.safetensors, in hex. Filled in by `save_encoder`.
        mean, std, spacing, equalise: see `InputConfig`.
        modality, intensity, orientation: modality, intensity window and axis order of the training scans.
        key_id: identifies the pseudonymisation key of the training store.
        method, encoder: names of the pretraining method and of the encoder, as given on the command line.
        store: fingerprint of the training store.
        step: updates of the weights.
        init, teacher: the weights that training started from and those of a frozen teacher, as described by
            `initial_weights.Weights`; None without.
        decoder: for an encoder with a pretrained decoder, the arguments of its `UNetDecoder` but for the classes, and the
            digest of decoder.safetensors. Filled in by `save_encoder`.
        head, fine_tuned: for a fine-tuned encoder, the target of its head and its training data.
    """

    name: str = ""
    options: dict[str, Any] | None = None
    channels: int = 1
    size: tuple[int, ...] = ()
    dim: int = 0
    weights: str = ""
    mean: float = 0.0
    std: float = 1.0
    modality: str = ""
    intensity: str = ""
    key_id: str = ""
    orientation: str = ""
    spacing: float | None = None
    equalise: bool = False
    method: str = ""
    encoder: str = ""
    store: str = ""
    step: int = 0
    init: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    fine_tuned: dict[str, Any] | None = None

    @property
    def input(self) -> InputConfig:
        """The input format of this encoder."""
        return InputConfig(self.channels, self.size, self.spacing, self.equalise, self.mean, self.std)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; those of OPTIONAL only where there are any."""
        values = asdict(self) | {"size": list(self.size)}
        return {k: v for k, v in values.items() if v is not None or k not in OPTIONAL}
