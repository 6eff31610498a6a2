"""Reads images: any file, array or Pillow image in, RGB ``uint8`` out at its original size.

This module owns the rules that turn stored values into RGB (scale by dtype, transparency, EXIF
orientation) and the wording of every complaint about an image. It never resizes (but for what
`read_reduced` leaves of large JPEG files and long strips) and never guesses a scale from the values
it finds.

The rules, the same for files and for arrays:

==================  ==============================================================================
stored as           becomes
==================  ==============================================================================
``uint8``           itself
``uint16``          divided by 257 and rounded, so that 65535 is 255
``bool``, 1 bit     0 and 255
float               multiplied by 255 and rounded; every value must lie in [0, 1]
other integers      refused: their full scale is unknown
grey                three equal channels
alpha, transparent  composited on white, as viewers and printers show it
CMYK, YCCK, YCbCr   Pillow's conversion; embedded colour profiles are not applied
EXIF orientation    applied
animation           its first frame
==================  ==============================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeAlias, TypeGuard, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from defectcam.exceptions import DataError
from defectcam.threads import ordered_map

__all__ = [
    "IMAGE_SUFFIXES",
    "SKIPPED_SUFFIXES",
    "ImageReadError",
    "ImageSource",
    "as_array",
    "check_readable",
    "content_hashes",
    "find_images",
    "find_skipped",
    "image_size",
    "open_file",
    "read_hashed",
    "read_image",
    "read_images",
    "read_marked",
    "read_reduced",
    "read_reduced_images",
    "skipped_text",
]

_RASTER_SUFFIXES = [".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"]
_NETPBM_SUFFIXES = [".pbm", ".pfm", ".pgm", ".pnm", ".ppm"]
IMAGE_SUFFIXES = frozenset([*_RASTER_SUFFIXES, *_NETPBM_SUFFIXES, ".png", ".tif", ".tiff", ".webp"])

_RAW_SUFFIXES = [".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"]
_OTHER_SUFFIXES = [".exr", ".heic", ".heif", ".jxl", ".pdf", ".psd", ".svg"]
#: Of pictures that are not read. Who leaves them out of a folder has to say so.
SKIPPED_SUFFIXES = frozenset([*_RAW_SUFFIXES, *_OTHER_SUFFIXES])

ImageSource: TypeAlias = "str | os.PathLike[str] | np.ndarray | Image.Image"

_T = TypeVar("_T")
_Item = TypeVar("_Item")

_MAX_FILES_NAMED = 10

#: A strip has fewer pixels across, and more along for each that will be made of them.
_STRIP_WIDTH, _STRIP_REDUCTION = 64, 64

#: What of a file, and of an array, is hashed at a time.
_BYTES_AT_A_TIME, _PIXELS_AT_A_TIME = 2**20, 2**16

#: A Pillow image that is not loaded yet reads its file when it is asked for pixels, and must not be
#: asked by two threads at once. Different images seldom share a lock.
_LOADING = tuple(threading.Lock() for _ in range(64))
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258


class ImageReadError(DataError):
    """An image that cannot be used: the message names it, says what is wrong and what to do."""


def is_path(source: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is a file or a folder, by its type alone."""
    return isinstance(source, (str, os.PathLike))


def read_image(source: ImageSource) -> np.ndarray:
    """Read one image as RGB ``uint8``.

    Parameters
    ----------
    source : str, PathLike, array or PIL.Image.Image
        A file that Pillow can open; or an array of shape ``(H, W)``, ``(H, W, 1)`` (grey), ``(H,
        W, 2)`` (grey and alpha), ``(H, W, 3)`` (RGB) or ``(H, W, 4)`` (RGB and alpha); or a Pillow
        image, which is left as it was found.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        C-contiguous. May share memory with `source` when that already is such an array.

    Raises
    ------
    ImageReadError
        If the file is missing, a folder, empty, truncated or no image; if an array is empty, has
        other axes or another dtype; if floats are not finite or not in [0, 1].
    TypeError
        If `source` is none of the types above.

    Notes
    -----
    The scale follows the dtype alone, never the values: a camera that writes 12 bits into a 16-bit
    file gives dark images, and ``array * 16`` is the remedy. Three-channel PNG and TIFF files of
    16 bits are reduced to 8 bits by Pillow while decoding, by dropping the low byte. Transparent
    pixels become white: what lies under them is arbitrary (often black) and white is what image
    viewers show.

    Examples
    --------
    >>> import numpy as np
    >>> read_image(np.full((4, 6), 0.5)).shape
    (4, 6, 3)
    >>> read_image(np.array([[0, 65535]], dtype=np.uint16))[0, :, 0].tolist()
    [0, 255]
    """
    if is_path(source):
        return _read_file(source, min_size=None)[0]
    if isinstance(source, Image.Image):
        return _read_pillow(source)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return _array_to_rgb(as_array(source))
    raise TypeError(
        "An image is a path, an array or a PIL.Image.Image, "
        f"got {type(source).__name__}: {source!r:.80}."
    )


def as_array(source: Any) -> np.ndarray:
    """Make an array of whatever can become one, a tensor or a masked array for example.

    Parameters
    ----------
    source : array-like
        Has the method ``__array__``.

    Returns
    -------
    ndarray
        Sharing memory with `source` where it can.

    Raises
    ------
    ImageReadError
        If it cannot become one, or if values are masked.
    """
    if isinstance(source, np.ma.MaskedArray):
        n_masked = int(np.ma.count_masked(source))
        if n_masked:
            raise ImageReadError(
                f"{n_masked} of {source.size} values are masked: replace them, by "
                "image.filled(value)."
            )
    if hasattr(source, "detach"):  # a tensor, which NumPy does not take with gradients or
        source = source.detach().cpu()  # from elsewhere, and whose bfloat16 it does not know
        source = source.float() if str(source.dtype) == "torch.bfloat16" else source
    try:
        return np.asarray(source)
    except (ImageReadError, MemoryError, TypeError):  # the latter of what is no image at all
        raise
    except Exception as error:  # whatever a library or a data set of the caller's raises
        raise ImageReadError(
            f"The {type(source).__name__} cannot be made an array ({type(error).__name__}: "
            f"{error}): pass NumPy arrays."
        ) from error


def read_images(
    sources: Iterable[ImageSource], *, n_workers: int | None = None
) -> Generator[np.ndarray, None, None]:
    """Read many images in parallel, in order.

    Parameters
    ----------
    sources : iterable
        What `read_image` takes, one after the other. Taken lazily: at most twice `n_workers`
        images are read ahead, so a stream may be longer than memory.
    n_workers : int, optional
        Reader threads (decoding releases the interpreter lock). By default one per processor, at
        most 8; negative numbers count from the number of processors, as joblib's ``n_jobs``.

    Yields
    ------
    ndarray of uint8, shape (H, W, 3)
        As `read_image` returns them.

    Raises
    ------
    ImageReadError
        At the first image, in order, that cannot be read. The threads have ended by then, as they
        have when the generator is closed early.
    """
    return _map_in_threads(read_image, sources, n_workers)


def read_reduced(
    source: ImageSource, min_size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read one image, decoding a large JPEG file at a fraction of its size.

    A JPEG decoder can produce 1/2, 1/4 or 1/8 of the size by leaving out high frequencies, several
    times faster than a full decode. It is asked for the smallest fraction whose sides are both at
    least twice `min_size`, so that the resize that follows still averages over pixels.

    A strip of a few pixels' width that is to be widened, and is more than 64 pixels long for each
    that will be made of it, has few bytes in its file and would have gigabytes on the way to the
    network: runs of its pixels are averaged, down to 64 times the length wanted. Everything else is
    read as `read_image` reads it.

    Parameters
    ----------
    source : str, PathLike, array or PIL.Image.Image
        What `read_image` takes.
    min_size : (int, int)
        Height and width, in pixels of the upright image, that will be made of the image.

    Returns
    -------
    image : ndarray of uint8, shape (h, w, 3)
        The image, perhaps reduced.
    original_size : (int, int)
        Height and width of the original image, EXIF orientation applied.

    Raises
    ------
    ImageReadError, TypeError
        As `read_image`.
    """
    if is_path(source):
        return _read_file(source, min_size=min_size)
    image = read_image(source)
    return _shorten_strip(image, min_size), (image.shape[0], image.shape[1])


def read_hashed(
    source: ImageSource, min_size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int], str]:
    """Read one image as `read_reduced` does, and hash what it was decoded from.

    A file that is written meanwhile may change after each look: it is looked at once.

    Parameters
    ----------
    source, min_size
        As for `read_reduced`.

    Returns
    -------
    image, original_size
        As `read_reduced` returns them.
    content : str
        As `content_hashes` gives it.

    Raises
    ------
    ImageReadError, TypeError
        As `read_image`.
    """
    if is_path(source):
        with _complaining_of(source), open_file(source) as file:
            content = file.read()
            return *_decoded(io.BytesIO(content), min_size), _hash_of_file(io.BytesIO(content))
    image = read_image(source)
    size = (image.shape[0], image.shape[1])
    return _shorten_strip(image, min_size), size, _hash_of_pixels(image)


def read_reduced_images(
    sources: Iterable[ImageSource], min_size: tuple[int, int], *, n_workers: int | None = None
) -> Generator[tuple[np.ndarray, tuple[int, int]], None, None]:
    """Read many images in parallel, in order, each as `read_reduced` does.

    Parameters
    ----------
    sources : iterable
        As for `read_images`.
    min_size : (int, int)
        As for `read_reduced`.
    n_workers : int, optional
        As for `read_images`.

    Yields
    ------
    image, original_size
        As `read_reduced` returns them.
    """
    return map_reduced_images(lambda *read: read, sources, min_size, n_workers=n_workers)


def map_reduced_images(
    function: Callable[..., _T],
    sources: Iterable[ImageSource],
    min_size: tuple[int, int],
    *,
    n_workers: int | None = None,
    read: Callable[[ImageSource, tuple[int, int]], tuple[Any, ...]] = read_reduced,
) -> Generator[_T, None, None]:
    """Read many images as `read_reduced_images` does, and map them in the reader threads.

    Parameters
    ----------
    function : callable
        Takes an image and its original size; called from several threads at once.
    sources, min_size, n_workers
        As for `read_reduced_images`.
    read : callable, default=read_reduced
        Or `read_hashed`, whose hash the function takes too.

    Yields
    ------
    What `function` returns, in the order of `sources`.
    """

    def mapped(item: tuple[int, ImageSource]) -> _T:
        return function(*_numbered(item, lambda source: read(source, min_size)))

    return ordered_map(mapped, enumerate(_not_one_path(sources)), n_workers)


def check_readable(
    paths: Iterable[str | os.PathLike[str]], *, n_workers: int | None = None
) -> None:
    """Refuse files that are no usable images, all of them at once, by their headers only.

    Parameters
    ----------
    paths : iterable of str or PathLike
        The files. Pixels are not decoded, so a file cut off after its header passes here and is
        refused when read.
    n_workers : int, optional
        As for `read_images`.

    Raises
    ------
    ImageReadError
        Naming every file that is missing, empty or no image (the first few, and how many more).
    """
    problems = [
        problem
        for problem in ordered_map(_header_problem, _not_one_path(paths), n_workers)
        if problem is not None
    ]
    if len(problems) == 1:
        raise ImageReadError(problems[0])
    if problems:
        named = problems[:_MAX_FILES_NAMED]
        if len(problems) > len(named):
            named.append(f"and {len(problems) - len(named)} more.")
        raise ImageReadError(f"{len(problems)} images cannot be read:\n" + "\n".join(named))


def content_hashes(
    sources: Iterable[ImageSource], *, n_workers: int | None = None
) -> Generator[str, None, None]:
    """Hash what images consist of, in parallel, in order: equal images have equal hashes.

    Parameters
    ----------
    sources : iterable
        What `read_image` takes, one after the other.
    n_workers : int, optional
        As for `read_images`.

    Yields
    ------
    str
        Of a file's bytes, which are not decoded, whatever the file's name and place; of an array
        and of a Pillow image, of its pixels in RGB. 32 hexadecimal digits.

    Raises
    ------
    ImageReadError, TypeError
        As `read_images`; a file that can be opened but not decoded passes here.
    """
    return _map_in_threads(_content_hash, sources, n_workers)


def find_images(folder: str | os.PathLike[str]) -> list[str]:
    """List the image files below a folder, sorted.

    Parameters
    ----------
    folder : str or PathLike
        Searched with all its sub-folders, through symbolic links too. Hidden files and folders
        (``.name``) and files without one of `IMAGE_SUFFIXES` are skipped.

    Returns
    -------
    list of str
        Paths that begin with `folder`. Empty when there are none.

    Raises
    ------
    ImageReadError
        If `folder` does not exist or is a file, or if a folder in it cannot be listed.

    See Also
    --------
    find_skipped : Pictures in formats that are not read.
    """
    return _files_below(folder, IMAGE_SUFFIXES)


def find_skipped(folder: str | os.PathLike[str]) -> list[str]:
    """List what `find_images` leaves out of a folder although it is a picture, sorted.

    Parameters
    ----------
    folder : str or PathLike
        Searched as by `find_images`.

    Returns
    -------
    list of str
        The files with one of `SKIPPED_SUFFIXES`, photographs of a telephone for example.

    Raises
    ------
    ImageReadError
        As of `find_images`.
    """
    return _files_below(folder, SKIPPED_SUFFIXES)


def skipped_text(skipped: Sequence[str]) -> str:
    """Say how many files are left out and what to do, as the end of a sentence.

    Parameters
    ----------
    skipped : sequence of str
        As `find_skipped` lists them; at least one.

    Returns
    -------
    str
        ``"4 files are skipped for the suffix (3 .heic, 1 .dng): convert them, to PNG or TIFF"``.
    """
    suffixes = Counter(os.path.splitext(path)[1].lower() for path in skipped)
    counts = ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common())
    files = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
    them = "it" if len(skipped) == 1 else "them"
    return f"{files} skipped for the suffix ({counts}): convert {them}, to PNG or TIFF"


def _files_below(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[str]:
    root = os.fspath(folder)
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise ImageReadError(f"{root!r} {what}: give a folder with images in it.")
    found = []
    entered = set()
    for parent, folders, files in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(parent)
        # A link that leads back to one of its own parents would otherwise never end.
        folders[:] = [] if real in entered else sorted(f for f in folders if not f.startswith("."))
        if real not in entered:
            found += [os.path.join(parent, file) for file in files if _ends_in(file, suffixes)]
        entered.add(real)
    return sorted(found)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the size of an image from its file's header.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    (int, int)
        Height and width in pixels, with the EXIF orientation applied: those of `read_image`.

    Raises
    ------
    ImageReadError
        If the file does not exist or is no image.
    """
    with _complaining_of(path):
        with open_file(path) as file, Image.open(file) as image:
            width, height = image.size
            is_on_its_side = _orientation(image) > 4
            if not (is_on_its_side and image.format == "TIFF"):
                return (width, height) if is_on_its_side else (height, width)
        # Pillow turns TIFF files itself; its releases differ in whether the size is turned before.
        height, width = read_image(path).shape[:2]
        return height, width


# Files and Pillow images


def _content_hash(source: ImageSource) -> str:
    if is_path(source):
        with _complaining_of(source), open_file(source) as file:
            return _hash_of_file(file)
    is_array = isinstance(source, np.ndarray) or hasattr(source, "__array__")
    return _hash_of_pixels(as_array(source) if is_array else read_image(source))


def _hash_of_file(file: BinaryIO) -> str:
    """Hash a file's bytes, some at a time: it may be larger than memory."""
    content = hashlib.blake2b(digest_size=16, key=b"file")
    while part := file.read(_BYTES_AT_A_TIME):
        content.update(part)
    return content.hexdigest()


def _hash_of_pixels(array: np.ndarray) -> str:
    """Hash what an array shows in RGB, some rows at a time: it may be larger than memory."""
    _refuse_other_shapes(array)
    height, width = array.shape[:2]
    content = hashlib.blake2b(digest_size=16, key=f"RGB {(height, width, 3)}".encode())
    step = max(1, _PIXELS_AT_A_TIME // width)
    try:
        for top in range(0, height, step):
            content.update(_array_to_rgb(array[top : top + step]).reshape(-1).data)
    except ImageReadError:
        _array_to_rgb(array)  # which complains about the image, not about these rows
        raise
    return content.hexdigest()


def _refuse_folder(error: OSError) -> None:
    """Complain about a folder whose images would be missing without a word."""
    raise ImageReadError(
        f"The folder {error.filename!r} cannot be listed ({error.strerror}): check its permissions "
        "and its drive."
    ) from error


def _ends_in(file_name: str, suffixes: Collection[str]) -> bool:
    suffix = os.path.splitext(file_name)[1].lower()
    return suffix in suffixes and not file_name.startswith(".")


def _read_file(
    path: str | os.PathLike[str], min_size: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    with _complaining_of(path), open_file(path) as file:
        return _decoded(file, min_size)


def _decoded(
    file: BinaryIO, min_size: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    with Image.open(file) as image:
        original_size = None
        if min_size is not None and image.format in ("JPEG", "MPO"):
            original_size = _reduce(image, min_size)
        pixels = _pillow_to_rgb(image)
        original_size = original_size or pixels.shape[:2]
        return pixels if min_size is None else _shorten_strip(pixels, min_size), original_size


@contextlib.contextmanager
def _complaining_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in whatever goes wrong with it within the block."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the broken bytes lead them to
        raise ImageReadError(f"{os.fspath(path)!r} {_what_is_wrong(path, error)}") from error


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, but nothing that would keep the reader waiting or never end.

    Opened here, not by Pillow: given a path, Pillow 11 and later map uncompressed TIFF files that
    lie on their side into memory with height and width exchanged.

    Raises
    ------
    ImageReadError
        If it is a pipe or a device.
    OSError, ValueError
        As `open` does.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Without the flag, opening a pipe waits for somebody to write into it.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of a folder, `open` itself complains
        return descriptor
    os.close(descriptor)
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
    raise ImageReadError(
        f"it is {kind}, no file. Read it, and pass the image as an array or a Pillow image."
    )


def _reduce(image: Image.Image, min_size: tuple[int, int]) -> tuple[int, int]:
    """Ask for a reduced decode of an open JPEG file; return its upright height and width."""
    height, width = min_size
    if _orientation(image) >= 5:  # stored sideways
        original_size = image.size
        image.draft(None, (2 * height, 2 * width))
    else:
        original_size = image.size[::-1]
        image.draft(None, (2 * width, 2 * height))
    return original_size


def _shorten_strip(image: np.ndarray, min_size: tuple[int, int]) -> np.ndarray:
    """Average runs of pixels along a strip; see `read_reduced`."""
    for long, short in ((0, 1), (1, 0)):
        kept = list(image.shape[:2])
        kept[long] = _STRIP_REDUCTION * min_size[long]
        is_strip = image.shape[short] < min(min_size[short], _STRIP_WIDTH)
        if is_strip and image.shape[long] > kept[long]:
            height, width = kept
            return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    return image


def read_marked(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a file that marks pixels of an image, such as a mask of its defects.

    Parameters
    ----------
    path : str or PathLike
        An image file. Its values are not scaled: the 1 of a 16-bit file is a mark.

    Returns
    -------
    ndarray of bool, shape (H, W)
        True where any channel is not 0, and the file is not transparent.

    Raises
    ------
    ImageReadError
        If the file is missing, a folder, empty, truncated or no image.
    """
    with _complaining_of(path), open_file(path) as file, Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        if len(upright.getbands()) == 1 and upright.mode != "P":
            return np.asarray(upright).astype(bool)
        if upright.has_transparency_data:
            colours = np.asarray(upright.convert("RGBA"))
            return (colours[..., :3].max(axis=2) > 0) & (colours[..., 3] > 0)
        return np.asarray(upright.convert("RGB")).max(axis=2) > 0


def _read_pillow(image: Image.Image) -> np.ndarray:
    try:
        with _LOADING[id(image) // 64 % len(_LOADING)]:  # addresses end in zeros
            image.load()
        return _pillow_to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        name = getattr(image, "filename", "")
        named = f" {name!r}" if name else ""
        raise ImageReadError(
            f"The Pillow image{named} of mode {image.mode!r} cannot be used: {error}"
        ) from error


def _header_problem(path: str | os.PathLike[str]) -> str | None:
    try:
        with open_file(path) as file, Image.open(file) as image:
            _refuse_unknown_scale(image)
    except MemoryError:
        raise
    except Exception as error:
        return f"{os.fspath(path)!r} {_what_is_wrong(path, error)}"
    return None


def _what_is_wrong(path: str | os.PathLike[str], error: Exception) -> str:
    """Complete the sentence that begins with a file's name: what is wrong, what to do."""
    if isinstance(error, ImageReadError):
        return f"cannot be used: {error}"
    if isinstance(error, ValueError) and "\0" in os.fspath(path):
        return "has a null character in its name, which no file can have: check the path."
    name = os.fspath(path)
    if not os.path.lexists(path) and name.startswith(("http://", "https://", "ftp://", "s3://")):
        return "is a URL, and nothing is downloaded: fetch it and give the file."
    if not os.path.lexists(path) and name.startswith("~"):
        return "does not exist: '~' is not expanded, use os.path.expanduser."
    if not os.path.lexists(path):
        return "does not exist: check the path and, if it is relative, the working directory."
    if os.path.islink(path) and not os.path.exists(path):
        return (
            f"is a symbolic link to {os.readlink(path)!r}, which leads to no file: mend the link."
        )
    if os.path.isdir(path):
        return "is a folder: give a file, or list its images with defectcam.images.find_images."
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty (0 bytes): remove it or copy it again."
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return (
            f"is refused by Pillow for its size: {error} "
            "If you trust it, set PIL.Image.MAX_IMAGE_PIXELS."
        )
    if isinstance(error, UnidentifiedImageError):
        return (
            f"is not an image that Pillow can open (it begins with {_first_bytes(path)!r}): "
            "remove it, or read it with another library and pass the array."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be opened ({error.strerror}): check its permissions and its drive."
    return (
        f"cannot be read, it may be damaged or cut off ({type(error).__name__}: {error}): "
        "remove it or copy it again."
    )


def _first_bytes(path: str | os.PathLike[str]) -> bytes:
    with open_file(path) as file:
        return file.read(12)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 5 and above swap height and width."""
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pillow_to_rgb(image: Image.Image) -> np.ndarray:
    """Turn an open Pillow image, of any mode, into RGB without changing it."""
    _refuse_unknown_scale(image)
    if _orientation(image) > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _array_to_rgb(_with_transparent_value(image, _wide_values(image)))
    if image.has_transparency_data:
        return _array_to_rgb(np.array(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _refuse_unknown_scale(image: Image.Image) -> None:
    # Unsigned 16-bit TIFF files open as "I;16"; "I" is what signed and 32-bit ones become.
    if image.mode == "I" and image.format == "TIFF":
        raise ImageReadError(
            "it holds signed or 32-bit integers, whose full scale is unknown. Read it, divide by "
            "its full scale and pass the float array, with values in [0, 1]."
        )


def _wide_values(image: Image.Image) -> np.ndarray:
    """Return the values of an image of more than 8 bits: uint16, or float.

    `Image.convert` would not scale these to 8 bits but saturate them.
    """
    values = np.asarray(image)
    if image.mode == "F":
        return values
    if image.mode == "I":  # 16-bit PGM files, and in older versions of Pillow PNG files
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageReadError(
                f"its integers range from {values.min()} to {values.max()}, beyond 16 bits, and "
                "their full scale is unknown. Divide by it and pass float with values in [0, 1]."
            )
        return values.astype(np.uint16)
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (16,))
    if bits == (12,):  # unpacked by Pillow to 0..4095
        return values.astype(np.float32) / np.float32(4095)
    return values.astype(np.uint16)


def _with_transparent_value(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Add an alpha channel where a PNG file of 16-bit grey names one grey value as transparent."""
    transparent = image.info.get("transparency")
    if values.dtype != np.uint16 or not isinstance(transparent, int):
        return values
    return np.stack([values, np.where(values == transparent, 0, 65535).astype(np.uint16)], axis=-1)


# Arrays


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    _refuse_other_shapes(array)
    pixels = _to_uint8(array)
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    n_channels = pixels.shape[2]
    if n_channels in (2, 4):
        pixels = _on_white(pixels[..., :-1], pixels[..., -1:])
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels)


def _refuse_other_shapes(array: np.ndarray) -> None:
    shape = array.shape
    wanted = "Give (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4)."
    if array.ndim == 3 and shape[2] not in (1, 2, 3, 4) and shape[0] in (1, 2, 3, 4):
        raise ImageReadError(
            f"The array of shape {shape} has its channels first: "
            "move them last with np.moveaxis(image, 0, -1)."
        )
    if array.ndim == 4:
        raise ImageReadError(
            f"One image expected, got an array of shape {shape}: pass one of its images, "
            "or the batch where several images are taken."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 2, 3, 4)):
        raise ImageReadError(f"An array of shape {shape} is not an image. {wanted}")
    if array.size == 0:
        raise ImageReadError(f"The array of shape {shape} is empty. {wanted}")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Scale by dtype, never by the values found: equal values look equal in every image."""
    dtype = array.dtype
    if dtype == np.uint8:
        return array
    if dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if dtype.kind == "u" and dtype.itemsize == 2:  # either byte order
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 is odd: no ties
    if dtype.kind == "f":
        _refuse_outside_unit_interval(array)
        return np.rint(array * array.dtype.type(255)).astype(np.uint8)
    raise ImageReadError(_advice_for_dtype(array))


def _refuse_outside_unit_interval(array: np.ndarray) -> None:
    low, high = float(array.min()), float(array.max())  # both are NaN if any value is
    if np.isnan(low):
        raise ImageReadError(
            f"{int(np.isnan(array).sum())} of {array.size} values are NaN: "
            "replace them, e.g. with np.nan_to_num."
        )
    if low >= 0 and high <= 1:
        return
    if np.isinf(low) or np.isinf(high):
        raise ImageReadError(
            f"{int(np.isinf(array).sum())} of {array.size} values are infinite: "
            "replace them by finite ones."
        )
    advice = "Divide by the full scale of the camera (not by the maximum of each image)."
    if low >= 0 and high <= 255:
        advice = "If they are 8-bit values use image.astype(np.uint8), or divide by 255."
    elif low >= 0 and high <= 65535:
        advice = "If they are 16-bit values use image.astype(np.uint16), or divide by 65535."
    elif low < 0:
        advice = (
            "If they are normalised (mean, standard deviation) pass the image as it was before."
        )
    raise ImageReadError(
        f"Float values must lie in [0, 1], these range from {low:g} to {high:g}. {advice}"
    )


def _advice_for_dtype(array: np.ndarray) -> str:
    got = f"Images of dtype {array.dtype} are not accepted: "
    if array.dtype.kind not in "iu":
        return got + "give uint8, uint16, bool, or float with values in [0, 1]."
    low, high = array.min(), array.max()
    got += f"the full scale of integers from {low} to {high} is unknown. "
    if low >= 0 and high <= 255:
        return got + "If it is 255, use image.astype(np.uint8)."
    if low >= 0 and high <= 65535:
        return (
            got + "If it is 65535, use image.astype(np.uint16); otherwise divide by it "
            "and pass float with values in [0, 1]."
        )
    return got + "Divide by it and pass float with values in [0, 1]."


def _on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite ``colour * a + white * (1 - a)``, rounded; every sum fits 16 bits."""
    wide = alpha.astype(np.uint16)
    mixed: np.ndarray = (colour * wide + 255 * (255 - wide) + 127) // 255
    return mixed.astype(np.uint8)


# Many images


def _not_one_path(sources: Iterable[_Item]) -> Iterable[_Item]:
    if is_path(sources):
        raise TypeError(
            f"Several images expected, got one path: pass a list, [{os.fspath(sources)!r}]."
        )
    return sources


def _map_in_threads(
    read: Callable[[ImageSource], _T], sources: Iterable[ImageSource], n_workers: int | None
) -> Generator[_T, None, None]:
    """Read each source, in order; complaints name one that has no file name by its place."""

    def numbered(item: tuple[int, ImageSource]) -> _T:
        return _numbered(item, read)

    return ordered_map(numbered, enumerate(_not_one_path(sources)), n_workers)


def _numbered(item: tuple[int, ImageSource], read: Callable[[ImageSource], _T]) -> _T:
    """Name an image that has no file name by its place."""
    index, source = item
    try:
        return read(source)
    except (ImageReadError, TypeError) as error:  # the latter of what is no image at all
        if is_path(source):
            raise
        kind = ImageReadError if isinstance(error, ImageReadError) else TypeError
        raise kind(f"Image at index {index}: {error}") from error
