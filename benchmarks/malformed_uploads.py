"""Uploads that no honest client sends, for the service's benchmark and its tests.

`malformed(n)` gives the same `n` requests every time: truncated pictures, pictures that would fill the memory,
files of other kinds under a picture's name, names and values that are paths, broken forms, values out of range,
bodies that are too large. Each of them is a mistake of the sender, so a service must answer each with 4xx.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PATHS = (
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:22/",
    "....//....//etc/shadow",
    "%2e%2e%2fetc%2fpasswd",
    "a.png\x00.sh",
    "C:\\secret.png",
    "|id.png",
    "$(id).png",
    "~/.ssh/id_rsa",
    "x" * 3000 + ".png",
)
OTHER_FILES = (
    b"",
    b"\x00",
    b"GIF89a",
    b"%PDF-1.7\n1 0 obj<<>>endobj",
    b"PK\x03\x04" + bytes(100),
    b"\x7fELF" + bytes(200),
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(a) run",
    b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    b"push graphic-context\nfill 'url(https://x/|id)'",
    b"#!/bin/sh\nid\n",
    b'{"image": "a.png"}',
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"BM" + bytes(60),
    b"II*\x00\xff\xff\xff\xff",
    b"P6 99999999 99999999 255\n",
)
PATHS_OF_SERVICE = ("/v1/caption", "/v1/ask", "/v1/search")


@dataclass(frozen=True)
class Upload:
    """A POST request. `name` says what is wrong with it."""

    name: str
    path: str
    content_type: str
    body: bytes


def malformed(count: int, *, max_upload: int = 8 * 2**20) -> Iterator[Upload]:
    """`count` malformed requests, in equal parts of every kind."""
    kinds: list[Callable[[random.Random], Upload]] = [
        truncated,
        bomb,
        other_file,
        damaged_header,
        path_trick,
        broken_form,
        wrong_value,
        wrong_json,
    ]
    for i in range(count):
        if i % 125 == 124:  # few, for they are large
            yield form("too large", "/v1/caption", bytes(max_upload + i))
        else:
            yield kinds[i % len(kinds)](random.Random(i))


def form(
    name: str,
    path: str,
    data: bytes,
    *,
    filename: str = "a.png",
    content_type: str = "image/png",
    **fields: str,
) -> Upload:
    """A form with a file, and what else the path asks for."""
    if path == "/v1/ask":
        fields = {"question": "what?", **fields}
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    ]
    head = f'--b\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n'
    body = "".join(parts).encode() + head.encode() + f"Content-Type: {content_type}\r\n\r\n".encode()
    return Upload(name, path, "multipart/form-data; boundary=b", body + data + b"\r\n--b--\r\n")


def noise(rng: random.Random, kind: str) -> bytes:
    """A picture that does not compress, so that a piece of it is a piece of its pixels."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def truncated(rng: random.Random) -> Upload:
    kind = rng.choice(FORMATS)
    whole = noise(rng, kind)
    size = int(len(whole) * rng.uniform(0.01, 0.7))
    return form(f"truncated {kind}", rng.choice(PATHS_OF_SERVICE), whole[:size])


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


@cache
def zeros(count: int) -> bytes:
    """So many zeros, compressed."""
    return zlib.compress(bytes(count))


def bomb(rng: random.Random) -> Upload:
    """Few bytes that would become many."""
    side = rng.randrange(6_000, 60_000)
    rows = zeros(3_000_000)
    text = chunk(b"zTXt", b"a\0\0" + zeros(80_000_000))
    data = rng.choice(
        (
            png(side, side, chunk(b"IDAT", rows)),
            png(2**31 - 1, 1, chunk(b"IDAT", rows)),
            png(1, 2**31 - 1, chunk(b"IDAT", rows)),
            png(8, 8, text, chunk(b"IDAT", zeros(200))),
            b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(9),
            b"BM"
            + struct.pack("<IHHI", 99, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6),
            b"P6 50000 50000 255\n" + bytes(100),
        )
    )
    return form("bomb", rng.choice(PATHS_OF_SERVICE), data)


def other_file(rng: random.Random) -> Upload:
    data = rng.choice((*OTHER_FILES, rng.randbytes(rng.randrange(1, 5_000))))
    kind = rng.choice(("image/png", "image/jpeg", "application/x-php", "text/html", "image/svg+xml", "x"))
    return form("other file", rng.choice(PATHS_OF_SERVICE), data, content_type=kind)


def damaged_header(rng: random.Random) -> Upload:
    """A picture whose first bytes are others."""
    data = bytearray(noise(rng, rng.choice(FORMATS)))
    data[:12] = rng.randbytes(12)
    return form("damaged header", rng.choice(PATHS_OF_SERVICE), bytes(data))


def path_trick(rng: random.Random) -> Upload:
    """A path where a file's name stands, or in place of the file itself."""
    path, where = rng.choice(PATHS), rng.choice(PATHS_OF_SERVICE)
    name = path.replace("\x00", "%00")
    if rng.random() < 0.5:
        return form("path as name", where, rng.choice(OTHER_FILES), filename=name)
    body = f'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n{path}\r\n--b--\r\n'
    return Upload("path as file", where, "multipart/form-data; boundary=b", body.encode())


def broken_form(rng: random.Random) -> Upload:
    path = rng.choice(("/v1/caption", "/v1/ask"))
    good = form("", path, noise(rng, "PNG")).body
    part = b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n'
    kind, body = rng.choice(
        (
            ("multipart/form-data", good),
            ("multipart/form-data; boundary=", good),
            ("multipart/form-data; boundary=other", good),
            ("multipart/form-data; boundary=" + "b" * 300, good),
            ("multipart/form-data; boundary=b", good[: len(good) // 2]),
            ("multipart/form-data; boundary=b", b""),
            ("multipart/form-data; boundary=b", b"--b"),
            ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition\r\n\r\nx\r\n--b--\r\n"),
            ("multipart/form-data; boundary=b", b"--b\r\n" + b"X" * 100_000 + b": y\r\n\r\n--b--\r\n"),
            ("multipart/form-data; boundary=b", b"".join(part % i for i in range(2_000)) + b"--b--\r\n"),
            ("multipart/form-data; boundary=b", good.replace(b'name="image"', b'name="photo"')),
            ("multipart/form-data; boundary=b; charset=nonsense", good.replace(b'"image"', b'"\xff\xfe"')),
            ("application/json", good),
            ("application/x-www-form-urlencoded", b"image=" + b"%ff" * 100),
            ("image/png", noise(rng, "PNG")),
            ("text/plain", b"hello"),
            ("", good),
        )
    )
    return Upload("broken form", path, kind, body)


def wrong_value(rng: random.Random) -> Upload:
    path, fields = rng.choice(
        (
            ("/v1/caption", {"lang": "fr"}),
            ("/v1/ask", {"question": "x" * 5_000}),
            ("/v1/ask", {"question": " "}),
            ("/v1/search", {"n": "-1"}),
            ("/v1/search", {"n": "1e9"}),
            ("/v1/search", {"text_weight": "nan"}),
            ("/v1/search", {"text_weight": "2"}),
            ("/v1/search", {"where": "1 = 1; drop table items"}),
            ("/v1/search", {"where": "no_such_column = 1"}),
            ("/v1/search", {"where": "(" * 999}),
            ("/v1/search", {"text": "y" * 5_000}),
        )
    )
    return form("wrong value", path, noise(rng, "PNG"), **fields)


def wrong_json(rng: random.Random) -> Upload:
    path, body = rng.choice(
        (
            ("/v1/draw", b"{"),
            ("/v1/draw", b"\xff\xfe"),
            ("/v1/draw", b"[" * 20_000),
            ("/v1/draw", json.dumps({"text": ""}).encode()),
            ("/v1/draw", b'{"text": "\\ud800"}'),
            ("/v1/draw", json.dumps({"text": "x", "seed": -1}).encode()),
            ("/v1/draw", b'{"text": "x", "seed": 1e400}'),
            ("/v1/write", json.dumps({"title": ["x"]}).encode()),
            ("/v1/write", json.dumps({"title": "x" * 60_000}).encode()),
            ("/v1/write", b'{"title": "x", "form": NaN}'),
            ("/v1/continue", json.dumps({"text": "x", "max_tokens": 10**9}).encode()),
            ("/v1/script", json.dumps({"item": "../../etc/passwd"}).encode()),
            ("/v1/script", json.dumps({"item": "x", "lang": "__proto__"}).encode()),
        )
    )
    return Upload("wrong JSON", path, "application/json", body)
