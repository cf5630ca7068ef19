"""Uploaded pictures: read within limits, decoded in threads, not kept."""

from __future__ import annotations

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request, UploadFile

from openm6.data import BadRecord
from openm6.data.images import read_image
from openm6.serve.errors import ApiError

DECODING = 2  # pictures at a time: one of 33 million pixels takes some 130 MB while it is decoded


class PictureReader:
    """Decodes at most `DECODING` pictures at a time, of at most `max_pixels`."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.limiter = CapacityLimiter(DECODING)

    async def read(self, request: Request, upload: UploadFile, size: int) -> np.ndarray:
        """The picture as uint8 (size, size, 3 | 4). Its name and its declared type are ignored.

        Raises ApiError 422 for a file that is not a picture. The upload is closed, and nothing of it is kept.
        """

        def decode() -> np.ndarray:
            data = upload.file.read()
            upload.file.close()
            return read_image(data, size=size, where="the picture", max_pixels=self.max_pixels)

        try:
            return await run_sync(decode, limiter=self.limiter)
        except BadRecord as error:
            raise ApiError(422, "bad_picture", str(error), field="image") from error
        finally:
            upload.file.close()
            request.scope["openm6.body_done"]()
