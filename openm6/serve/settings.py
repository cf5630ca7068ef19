"""What a service may be asked for, and how much of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Limits of the service. What exceeds one is answered with 4xx, what it cannot take on now with 503."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: str | None = Field(
        default=None, min_length=8
    )  # asked of every request but those of the page and health
    hosts: frozenset[str] = frozenset()  # names beside localhost, without a key; "*" = any

    max_upload: int = Field(default=8 * 2**20, ge=1024)  # bytes of a request's body
    max_pixels: int = Field(default=2**25, ge=1)  # of a picture, before it is decoded
    upload_seconds: float = Field(default=30.0, gt=0)  # to send a body
    max_uploads: int = Field(default=32, ge=1)  # bodies that are held at a time; further ones wait their turn

    max_queue: int = Field(
        default=512, ge=1
    )  # requests that wait for the model; one more is told to come again
    max_batch: int = Field(default=16, ge=1)  # requests that the model computes at a time
    answer_seconds: float = Field(default=120.0, gt=0)  # from the queue to the answer's end

    stop_seconds: float = Field(default=30.0, ge=0)  # for requests at work, once told to stop
