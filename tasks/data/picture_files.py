"""Reads picture files of every ordinary kind as RGB arrays of given sizes. A file that cannot be read is a `Reject`."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.data.aspect_buckets import Bucket, nearest_bucket
from tasks.data.sources.picture_candidate import Reject

# Named one by one, because Pillow also opens formats that run other programs (EPS) or are not pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def load_picture(data: bytes, size: int, max_pixels: int, buckets: Sequence[Bucket] = ()) -> np.ndarray:
    """Decode a picture file and fit it to a square, uint8 (size, size, 3), or to the nearest of `buckets` if given.

    The picture is turned upright as its EXIF data says, resized to cover the size, and cropped to its centre.
    Transparent pixels are composited on white. The first frame of an animation is taken. Colour profiles are not
    applied. Raises Reject for a picture that is truncated, of an unknown kind, or of more than `max_pixels`.
    """
    try:
        with pixel_limit(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            upright = to_rgb(ImageOps.exif_transpose(image))
            bucket = nearest_bucket(upright.height, upright.width, buckets) if buckets else Bucket(1.0, size, size)
            picture = ImageOps.fit(upright, (bucket.width, bucket.height), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        # Pillow's own text holds an address in memory, which differs from run to run.
        raise Reject("unknown picture format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Reject(f"more pixels than max_pixels = {max_pixels}") from None
    except Reject:
        raise
    except Exception as error:  # decoders of damaged files raise errors of many kinds, SyntaxError among them
        raise Reject(f"cannot be decoded: {error}") from None
    return np.asarray(picture)


@contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Make Pillow refuse a picture of more pixels before it decodes it.

    By itself Pillow only warns above the limit, and refuses at twice the limit.
    """
    previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = previous


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB. Raises Reject if the mode does not say which value is white."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Reject(f"pixels of mode {image.mode} (32 bits) have no defined white: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def encode_png(picture: np.ndarray) -> bytes:
    """Lossless PNG bytes of a uint8 (H, W, 3) picture.

    They are compressed at the fastest level, because compression takes most of the time of writing a shard.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: memoryview) -> np.ndarray:
    """The uint8 (H, W, 3) picture that `encode_png` encoded."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)
