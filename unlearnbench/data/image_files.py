"""Decode image files as they come: photographs, screenshots and generators' output, in folders and zip archives."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unlearnbench.errors import Damaged, UserError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Names of image files end in one of these, in lower or upper case."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are decoded, whatever a file is called; further decoders of Pillow's are never tried."""
LARGEST_FILE = 256 * 2**20
"""Largest size of one image file in bytes, in a folder or unpacked from an archive."""
DECODER = 2
"""Version of the pixels that files give, for caches of decoded images."""
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError)
"""Errors raised by a zip that is damaged, encrypted or of an unknown kind."""


class Undecodable(ValueError):
    """A file that is no image, or none that can be read; the message says why, without the file's name."""


class Decoded(NamedTuple):
    """An image, and what was done to it."""

    image: Image
    """8-bit RGB, upright."""
    composited: bool
    """Whether it had transparent pixels, which now lie on white."""
    frames: int
    """How many frames the file has; the first one was taken."""


def decode_image(data: bytes) -> Decoded:
    """Decode the bytes of an image file to 8-bit RGB.

    Greys of 16 bits are divided by 257. Transparent pixels are composited on white. EXIF's orientation is applied. Of
    an animation the first frame is taken. CMYK is converted without a colour profile.

    Raises `Undecodable`, also for more pixels than Pillow reads without a warning (89 million).
    """
    from PIL import Image

    if len(data) > LARGEST_FILE:
        raise Undecodable(f"it is larger than {LARGEST_FILE // 2**20} MiB")
    try:
        with _bombs_refused(), Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            frames = int(getattr(opened, "n_frames", 1)) if opened.format != "MPO" else 1  # a phone's second picture
            opened.seek(0)
            opened.load()
            image, composited = _as_rgb(opened)
            return Decoded(_upright(image, opened), composited, frames)
    except Undecodable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Undecodable(_no_image(data)) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise Undecodable(one_line(error)[:120]) from error


@contextmanager
def _bombs_refused() -> Iterator[None]:
    """Make Pillow's warning about a great many pixels an error within this block."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _no_image(data: bytes) -> str:
    return "it is empty" if not data else f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"


def _as_rgb(image: Image) -> tuple[Image, bool]:
    """Convert to RGB; say whether anything was transparent."""
    if image.mode == "I" and image.format == "PNG":
        return _scaled(image), False  # as Pillow before 11 reads greys of 16 bits
    if image.mode.startswith("I;16"):
        return _scaled(image), False
    if image.mode in ("I", "F"):
        raise Undecodable(f"its pixels are {'whole' if image.mode == 'I' else 'real'} numbers of 32 bits: save 8 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB"), False


def _scaled(image: Image) -> Image:
    """Greys from 0 to 65,535 as 8 bits, rounded. Pillow's own conversion clips them at 255."""
    from PIL import Image

    greys = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(greys / 257).clip(0, 255).astype(np.uint8)).convert("RGB")


def _on_white(image: Image) -> tuple[Image, bool]:
    from PIL import Image

    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB"), False
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB"), True


def _upright(image: Image, opened: Image) -> Image:
    """Turn the image as EXIF says; one without, or with unreadable EXIF, stays as it is."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        orientation = opened.getexif().get(0x0112)  # tag Orientation, EXIF 2.32, table 4
    except Exception:  # noqa: BLE001 - damaged metadata of a picture that can be seen
        return image
    return image.transpose(turns[orientation]) if orientation in turns else image


def central_square(image: Image, size: int) -> np.ndarray:
    """Crop to the central square and resize (Lanczos) to uint8 (size, size, 3)."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


# ---- folders and archives --------------------------------------------------------------------------------------------


def is_image_name(name: str) -> bool:
    """Whether a path names an image, by its ending; never for litter."""
    return name.lower().endswith(SUFFIXES) and not is_litter(name)


def is_litter(name: str) -> bool:
    """Whether a path is hidden, or something that macOS or Windows adds: `__MACOSX/`, `._name`, `Thumbs.db`."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    hidden = any(part[0] == "." and part not in (".", "..") for part in parts)
    return hidden or "__MACOSX" in parts or parts[-1:] in (("Thumbs.db",), ("desktop.ini",))


@contextmanager
def opened_zip(path: Path, remedy: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip for reading. Errors on opening or while reading become `Damaged`, with a remedy."""
    with broken_zips_told(path, remedy), zipfile.ZipFile(path) as archive:
        yield archive


@contextmanager
def broken_zips_told(path: Path, remedy: str) -> Iterator[None]:
    """Turn errors of a zip that is damaged, encrypted or of an unknown kind into one line, within this block."""
    try:
        yield
    except BROKEN as error:
        raise Damaged(f"{path} cannot be read ({one_line(error)[:120]}): {remedy}") from error


def images_in_zip(archive: zipfile.ZipFile) -> list[str]:
    """Sorted names of an archive's images. Nothing is ever unpacked to disk.

    Raises `UserError` for a name that leads out of the archive, such as ../a.png or /a.png.
    """
    names = sorted(info.filename for info in archive.infolist() if not _is_link(info) and is_image_name(info.filename))
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise UserError(f"{archive.filename} names {name!r}, which leads out of it: pack it again from inside")
    return names


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def read_from_zip(archive: zipfile.ZipFile, name: str) -> bytes:
    """Unpack one image into memory, and no more of it than `LARGEST_FILE`. Raises `Undecodable`."""
    try:
        with archive.open(name) as file:
            data = file.read(LARGEST_FILE + 1)
    except BROKEN as error:
        raise Undecodable(one_line(error)[:120]) from error
    return data
