import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openm6.data.bad import BadRecord
from openm6.data.images import MAX_PIXELS, read_image


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises `width` x `height` pixels and holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 40), (90, 90, 90, 40)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 40), (10, 20, 30, 40)),
        ("I;16", 0x8000, (127, 127, 127)),
    ],
)
def test_every_mode_becomes_8_bit_rgb_or_rgba(mode, fill, expected):
    array = read_image(encode(Image.new(mode, (5, 3), fill)))
    assert array.dtype == np.uint8 and array.shape == (3, 5, len(expected))
    assert (array == np.array(expected)).all()


def test_palette_with_transparency_keeps_it():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert read_image(encode(image)).tolist()[0][0] == [200, 100, 50]
    assert read_image(encode(image, transparency=1)).tolist()[0][0] == [200, 100, 50, 0]


def test_cmyk_jpeg_is_not_inverted():
    array = read_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert array.shape == (16, 16, 3)
    assert array[8, 8, 0] > 200 and array[8, 8, 1:].max() < 60


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP"):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        red, _, blue = read_image(data)[3, 3, :3].tolist()
        assert red > 240 and blue < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    turns = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
    }
    turns |= {6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: np.rot90}
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = read_image(encode(Image.fromarray(pixels), exif=exif))
    assert np.array_equal(array, turns.get(orientation, lambda x: x)(pixels))


def test_fits_a_square_and_keeps_the_aspect():
    opaque = read_image(encode(Image.new("RGB", (40, 10), "red")), size=8)
    assert opaque.shape == (8, 8, 3)
    assert (opaque[:3] == 255).all() and (opaque[5:] == 255).all()
    assert (opaque[3:5] == (255, 0, 0)).all()
    clear = read_image(encode(Image.new("RGBA", (10, 40), "red")), size=8)
    assert clear.shape == (8, 8, 4)
    assert (clear[:, :3, 3] == 0).all() and (clear[:, 3:5, 3] == 255).all()
    assert read_image(encode(Image.new("RGB", (3000, 1))), size=16).shape == (16, 16, 3)


def test_transparent_pixels_do_not_bleed_their_colour():
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[..., 1] = 255  # green, but invisible
    pixels[8:24, 8:24] = (255, 0, 0, 255)
    array = read_image(encode(Image.fromarray(pixels)), size=12)
    assert array[array[..., 3] > 0][:, 1].max() < 8


def test_large_jpeg_scales_like_a_plain_resize():
    ramp = np.tile(np.linspace(0, 255, 512, dtype=np.uint8), (512, 1))
    image = Image.merge("RGB", [Image.fromarray(ramp)] * 3)
    small = read_image(encode(image, "JPEG", quality=95), size=32).astype(int)
    assert abs(small - np.array(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=int)).max() <= 4


def test_refuses_images_that_would_fill_the_memory():
    with pytest.raises(BadRecord, match="huge"):
        read_image(png_header(60_000, 60_000))
    bomb = encode(Image.new("1", (9_000, 9_000)))
    assert len(bomb) < 20_000 and MAX_PIXELS < 9_000**2
    with pytest.raises(BadRecord, match="huge"):
        read_image(bomb, size=64)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_refuses_truncated_files_of_every_format(form):
    data = encode(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)), form
    )
    assert read_image(data).shape == (40, 40, 3)
    for keep in (0.02, 0.3, 0.7):
        with pytest.raises(BadRecord):
            read_image(data[: int(len(data) * keep)])


def test_names_the_file_and_what_is_wrong(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<svg/>")
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in [
        ("empty.png", "empty"),
        ("text.png", "not an image"),
        ("pipe.png", "not a regular file"),
        ("none.png", "no such file"),
        ("nul\0.png", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ]:
        with pytest.raises(ValueError, match=why) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="size"):
        read_image(b"", size=0)


def test_postscript_is_not_run():
    with pytest.raises(BadRecord, match="not an image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_file_is_a_picture_or_a_bad_record(data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]))
    raw = bytearray(encode(Image.linear_gradient("L").resize((16, 16)).convert("RGB"), form))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = read_image(bytes(raw), size=8)
    except BadRecord:
        return
    assert array.shape[:2] == (8, 8) and array.dtype == np.uint8


def png_16(pixels: np.ndarray, kind: int, clear: bytes = b"") -> bytes:
    """A 16-bit PNG of grey (kind 0) or colours (2); `clear` is its tRNS chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0))
    trns = chunk(b"tRNS", clear) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + header + trns + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("largest", [255, 256, 65_535])
def test_16_bits_are_scaled_by_their_mode_not_by_what_is_in_them(largest):
    array = read_image(png_16(np.array([[0, 100, largest]]), 0))
    assert array[0, :, 0].tolist() == [0, 0, largest // 257]


def test_16_bit_pictures_keep_what_is_transparent():
    grey = read_image(png_16(np.array([[0, 256, 257, 65_535]]), 0, struct.pack(">H", 256)))
    assert grey.shape == (1, 4, 4) and grey[0, :, 3].tolist() == [255, 0, 255, 255]
    assert grey[0, :, 0].tolist() == [0, 0, 1, 255]
    colours = np.array([[[256, 512, 768], [65_535, 0, 0]]])
    coloured = read_image(png_16(colours, 2, struct.pack(">HHH", 256, 512, 768)))
    assert coloured[0].tolist() == [[1, 2, 3, 0], [255, 0, 0, 255]]


def test_whole_numbers_beyond_16_bits_have_no_scale():
    with pytest.raises(BadRecord, match="have no fixed scale"):
        read_image(encode(Image.new("I", (2, 2), 70_000), "TIFF"))
