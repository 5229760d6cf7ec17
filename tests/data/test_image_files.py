"""Images as cameras, phones, browsers and generators write them: each gives the pixels that a viewer shows."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from unlearnbench.data import image_files
from unlearnbench.data.image_files import Undecodable, central_square, decode_image, images_in_zip, is_image_name
from unlearnbench.errors import UserError

RNG = np.random.RandomState(0)
COLOURS = RNG.randint(0, 256, (6, 8, 3), dtype=np.uint8)
GREYS = RNG.randint(0, 65536, (6, 8), dtype=np.uint16)


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(decode_image(data).image)


def turned(format):
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF 2.32: the camera's top row is the picture's right side
    smooth = Image.fromarray(np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)).convert("RGB")
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    upright = np.asarray(
        Image.open(io.BytesIO(saved(smooth, format, **options))).convert("RGB").rotate(-90, expand=True)
    )
    return saved(smooth, format, exif=exif.tobytes(), **options), upright


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_what_was_read_right_before_gives_the_same_pixels(format):
    for mode in ("RGB", "L", "P", "1"):
        data = saved(Image.fromarray(COLOURS).convert(mode), format)
        np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_so_do_photographs(format, mode):
    data = saved(Image.fromarray(COLOURS).convert(mode), format)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_greys_of_sixteen_bits_are_scaled_not_clipped():
    expected = np.rint(GREYS / 257).astype(np.uint8)
    assert len(np.unique(expected)) > 20
    for format in ("PNG", "TIFF"):
        found = pixels(saved(Image.fromarray(GREYS), format))
        np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=2))
    high_byte_first = saved(Image.fromarray(GREYS.byteswap().view(">u2")), "TIFF")
    np.testing.assert_array_equal(pixels(high_byte_first)[..., 0], expected)


def test_transparent_pixels_lie_on_white_and_it_is_said():
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[:3], alpha[3] = 0, 51
    layered = Image.fromarray(np.dstack([COLOURS, alpha]))
    decoded = decode_image(saved(layered, "PNG"))
    found = np.asarray(decoded.image).astype(int)
    assert decoded.composited
    assert (found[:3] == 255).all()
    np.testing.assert_array_equal(found[4:], COLOURS[4:])
    assert abs(found[3] - (0.2 * COLOURS[3] + 0.8 * 255)).max() <= 1
    grey = decode_image(saved(layered.convert("LA"), "PNG"))
    assert grey.composited and (np.asarray(grey.image)[:3] == 255).all()
    palette = decode_image(saved(Image.fromarray(COLOURS).quantize(4), "PNG", transparency=bytes([0, 255, 255, 255])))
    assert palette.composited and (np.asarray(palette.image) == 255).all(axis=2).any()
    keyed = decode_image(saved(Image.fromarray(COLOURS), "PNG", transparency=tuple(COLOURS[0, 0].tolist())))
    assert keyed.composited and (np.asarray(keyed.image)[0, 0] == 255).all()


def test_opaque_alpha_changes_nothing():
    decoded = decode_image(saved(Image.fromarray(COLOURS).convert("RGBA"), "PNG"))
    assert not decoded.composited
    np.testing.assert_array_equal(np.asarray(decoded.image), COLOURS)


def test_cmyk_photographs_are_read():
    data = saved(Image.fromarray(np.full((8, 8, 3), (200, 40, 40), np.uint8)).convert("CMYK"), "JPEG", quality=95)
    assert abs(pixels(data).astype(int) - (200, 40, 40)).max() <= 4


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_camera_held_upright_gives_an_upright_picture(format):
    data, upright = turned(format)
    np.testing.assert_array_equal(pixels(data), upright)


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP"):
        data = saved(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        decoded = decode_image(data)
        assert decoded.frames == 3
        assert np.asarray(decoded.image)[0, 0].tolist() == [255, 0, 0]


def test_a_phones_second_picture_makes_no_animation():
    data = saved(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode_image(data).frames == 1


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb():
    """30,000 x 30,000 white pixels in a hundred kilobytes."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    lines = zlib.compress((b"\0" + b"\xff" * 3750) * 30_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (saved(Image.fromarray(COLOURS), "PNG")[:-40], "truncated|broken|Error"),
        (saved(Image.fromarray(RNG.randint(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")[:900], "truncated"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404: Not Found</html>", "no PNG, JPEG"),
        (bomb(), "Bomb"),
        (saved(Image.fromarray(RNG.rand(4, 4).astype(np.float32)), "TIFF"), "real numbers"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no PNG, JPEG"),
    ],
    ids=["cut-png", "cut-jpeg", "empty", "html", "bomb", "floats", "postscript"],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(data, why):
    with pytest.raises(Undecodable, match=why):
        decode_image(data)


def test_names_of_images_and_what_macos_adds():
    yes = ("a.png", "b/c.JPG", "d.jpeg", "e.webp", "f.BMP", "g.tiff", "h.tif", "i.gif")
    no = ("a.txt", "__MACOSX/._a.png", "x/._a.png", ".DS_Store", "x/.hidden/a.png", "a.heic", "png")
    assert all(map(is_image_name, yes)) and not any(map(is_image_name, no))


def test_a_zip_from_a_mac_gives_its_images_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("set/b.png", "set/a.jpg", "set/.DS_Store", "__MACOSX/set/._a.jpg", "set/readme.txt"):
            archive.writestr(name, b"x")
        link = zipfile.ZipInfo("set/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert images_in_zip(archive) == ["set/a.jpg", "set/b.png"]


@pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "a/../../b.png", "C:/a.png"])
def test_a_name_that_leads_out_of_a_zip_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(name, b"x")
    with zipfile.ZipFile(tmp_path / "set.zip") as archive, pytest.raises(UserError, match="leads out"):
        images_in_zip(archive)


def test_no_more_of_a_member_is_unpacked_than_an_image_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "LARGEST_FILE", 1000)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1_000_000))
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        data = image_files.read_from_zip(archive, "a.png")
    assert len(data) == 1001
    with pytest.raises(Undecodable, match="larger"):
        decode_image(data)


def test_the_central_square_is_taken():
    wide = Image.fromarray(
        np.hstack([np.zeros((4, 2), np.uint8), np.full((4, 4), 9, np.uint8), np.zeros((4, 2), np.uint8)])
    )
    np.testing.assert_array_equal(central_square(wide.convert("RGB"), 4), 9)
