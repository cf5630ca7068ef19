"""The settings of a service: its limits, and the host names that it accepts."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

KEY = re.compile(r"[!-~]([ -~]*[!-~])?")  # characters that a header can carry

ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


class Settings(BaseModel):
    """Limits of the service. A request above a limit gets 4xx. A request that has to wait too long gets 503."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: str | None = Field(
        default=None, min_length=8
    )  # needed for every request except those of the page and health
    # Host names beside localhost. Their pages may send requests; without a key only they are served. "*" = any.
    hosts: frozenset[str] = frozenset()

    root_path: str = ""  # the path below which a proxy offers the service, such as /shop

    max_upload: int = Field(default=8 * 2**20, ge=1024)  # bytes of a request's body
    max_pixels: int = Field(default=2**25, ge=1)  # of a picture, before it is decoded
    header_seconds: float = Field(default=20.0, gt=0)  # to send the headers of a request
    upload_seconds: float = Field(default=30.0, gt=0)  # to send a body
    max_uploads: int = Field(default=32, ge=1)  # bodies that are held at a time; further ones wait their turn

    max_queue: int = Field(default=512, ge=1)  # requests that wait for the model; one more gets 503
    max_batch: int = Field(default=16, ge=1)  # requests that the model computes at a time
    answer_seconds: float = Field(default=120.0, gt=0)  # from the queue to the answer's end

    stop_seconds: float = Field(default=30.0, ge=0)  # for running requests, after the signal to stop

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: str | None) -> str | None:
        if key is not None and not KEY.fullmatch(key):
            raise ValueError("a key has letters, digits and signs of ASCII, and no space at its ends")
        return key

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if path and not ROOT.fullmatch(path):
            raise ValueError(f"a root path begins with / and has letters, digits, - . _ ~ only, not {path!r}")
        return path.rstrip("/")

    @field_validator("hosts")
    @classmethod
    def _as_browsers_write_them(cls, hosts: frozenset[str]) -> frozenset[str]:
        return frozenset(host.lower() for host in hosts)
