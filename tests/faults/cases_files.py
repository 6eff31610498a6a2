"""Image files, folders of them and tables that name them."""

from __future__ import annotations

import base64
import io
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from defectcam.datasets import load_csv
from defectcam.folders import labelled_folder
from defectcam.images import (
    ImageReadError,
    check_readable,
    content_hashes,
    find_images,
    image_size,
    read_image,
    read_images,
)
from faults.catalogue import Bench, Group

group = Group("cases_files")

PIXELS = np.random.default_rng(1).integers(0, 255, size=(20, 24, 3), dtype=np.uint8)
GREY = np.repeat(PIXELS[..., :1], 3, axis=2)


def encoded(image: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def cut(kind: str, share: float) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        content = encoded(kind=kind)
        return read_image(bench.file("cut.png", content[: int(share * len(content))]))

    return act


for kind, shares in {
    "PNG": (0.01, 0.02, 0.1, 0.5, 0.9),
    "JPEG": (0.01, 0.2, 0.5, 0.9),
    "TIFF": (0.01, 0.5, 0.9),
    "BMP": (0.1, 0.9),
    "GIF": (0.3, 0.9),
    "WEBP": (0.1, 0.9),
}.items():
    for share in shares:
        title = f"a {kind} file cut off after {share:.0%}"
        group.refused(title, ImageReadError, "cut.png", cut(kind, share))


def refuse_file(name: str, content: bytes, says: str, title: str) -> None:
    group.refused(title, ImageReadError, says, lambda b: read_image(b.file(name, content)))


refuse_file("a.png", b"", "is empty (0 bytes)", "an empty file")
refuse_file("a.png", b"no picture", "is not an image that Pillow can open", "text named .png")
refuse_file("a.png", b"\x89PNG\r\n\x1a\n", "a.png", "a PNG signature and nothing else")
refuse_file("a.png", b"\0" * 4096, "is not an image", "a file of zeros")


def broken_png(bench: Bench) -> Any:
    content = bytearray(encoded())
    content[-30] ^= 0xFF
    return read_image(bench.file("flip.png", bytes(content)))


group.refused("a PNG file with a damaged checksum", ImageReadError, "flip.png", broken_png)
group.works(
    "a JPEG file named .png",
    (20, 24, 3),
    lambda b: read_image(b.file("a.png", encoded(kind="JPEG"))).shape,
)
group.refused(
    "a folder in a list of files",
    ImageReadError,
    "is a folder: give a file",
    lambda b: list(read_images([b.tmp], n_workers=1)),
)
group.refused(
    "a missing file", ImageReadError, "does not exist", lambda b: read_image(b.tmp / "no.png")
)
group.refused("an empty name", ImageReadError, "does not exist", lambda b: read_image(""))
group.refused(
    "a URL", ImageReadError, "nothing is downloaded", lambda b: read_image("https://a.b/c.png")
)
group.refused(
    "a path with ~", ImageReadError, "os.path.expanduser", lambda b: read_image("~/c.png")
)
group.refused(
    "a name of 5000 characters", ImageReadError, "does not exist", lambda b: read_image("x" * 5000)
)
group.refused(
    "a null character in a name", ImageReadError, "null character", lambda b: read_image("a\0.png")
)
group.refused(
    "a name that is no text", TypeError, "An image is a path", lambda b: read_image(b"a.png")
)
for title, name in {
    "a name with a line break": "a\nb.png",
    "a name in other scripts": "größe 図.png",
    "a name with spaces and quotes": "a 'b' \"c\" .png",
    "a name that looks like an option": "--help.png",
}.items():
    group.works(title, PIXELS, lambda b, name=name: read_image(b.file(name, encoded())))


def forbidden(bench: Bench) -> Any:
    def refuse(*args: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    path = bench.file("a.png", encoded())
    bench.patch.setattr(os, "open", refuse)
    return read_image(path)


group.refused("no permission to read", ImageReadError, "check its permissions", forbidden)


def forbidden_folder(bench: Bench) -> Any:
    listed = os.scandir

    def scan(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    (bench.tmp / "locked").mkdir()
    bench.patch.setattr(os, "scandir", scan)
    return find_images(bench.tmp)


group.refused(
    "a sub-folder that cannot be listed", ImageReadError, "cannot be listed", forbidden_folder
)


def circle(bench: Bench) -> Any:
    os.symlink(bench.tmp / "b.png", bench.tmp / "a.png")
    os.symlink(bench.tmp / "a.png", bench.tmp / "b.png")
    return read_image(bench.tmp / "a.png")


def dangling(bench: Bench) -> Any:
    os.symlink(bench.tmp / "gone.png", bench.tmp / "a.png")
    return read_image(bench.tmp / "a.png")


def circle_of_folders(bench: Bench) -> Any:
    bench.file("a.png", encoded())
    (bench.tmp / "sub").mkdir()
    os.symlink(bench.tmp, bench.tmp / "sub" / "up")
    return [Path(path).name for path in find_images(bench.tmp)]


group.refused("symbolic links in a circle", ImageReadError, "leads to no file", circle)
group.refused("a symbolic link to nothing", ImageReadError, "leads to no file", dangling)
group.works("a folder that links to its own parent", ["a.png"], circle_of_folders)

if hasattr(os, "mkfifo"):

    def pipe(bench: Bench) -> str:
        os.mkfifo(bench.tmp / "a.png")
        return str(bench.tmp / "a.png")

    group.refused("a named pipe", ImageReadError, "it is a pipe", lambda b: read_image(pipe(b)))
    group.refused(
        "a named pipe before training",
        ImageReadError,
        "it is a pipe",
        lambda b: check_readable([pipe(b)], n_workers=1),
    )
    group.refused(
        "a named pipe to be hashed",
        ImageReadError,
        "it is a pipe",
        lambda b: list(content_hashes([pipe(b)], n_workers=1)),
    )
    group.refused(
        "a named pipe whose size is asked for",
        ImageReadError,
        "it is a pipe",
        lambda b: image_size(pipe(b)),
    )
    group.refused(
        "a named pipe among the files to predict",
        ImageReadError,
        "it is a pipe",
        lambda b: b.model.predict([pipe(b)]),
    )
if os.path.exists("/dev/zero"):
    group.refused(
        "an endless device", ImageReadError, "it is a device", lambda b: read_image("/dev/zero")
    )
    group.refused(
        "an empty device", ImageReadError, "it is a device", lambda b: read_image("/dev/null")
    )

group.works(
    "a strip of 60,000 pixels",
    (3, 60_000, 3),
    lambda b: read_image(b.file("s.png", encoded(Image.new("L", (60_000, 3))))).shape,
)


def bomb(limit: int | None) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        bench.patch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        return read_image(bench.file("bomb.png", encoded(Image.new("1", (600, 500))))).shape

    return act


group.refused(
    "more pixels than twice the limit", ImageReadError, "set PIL.Image.MAX_IMAGE_PIXELS", bomb(99)
)
group.works("many pixels after the limit was raised", (500, 600, 3), bomb(300_000))
group.works("many pixels after the limit was taken away", (500, 600, 3), bomb(None))


def huge_claim(bench: Bench) -> Any:
    content = bytearray(encoded())
    content[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    return read_image(bench.file("claim.png", bytes(content)))


group.refused("a small file that claims a huge size", ImageReadError, "claim.png", huge_claim)

FRAMES = [Image.fromarray(frame) for frame in (PIXELS, 255 - PIXELS)]
for kind, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
    content = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)
    group.works(
        f"a {kind} file of several frames: its first",
        PIXELS,
        lambda b, content=content: read_image(b.file("frames", content)),
    )
group.works(
    "CMYK in a TIFF file",
    PIXELS,
    lambda b: read_image(b.file("c.tif", encoded(Image.fromarray(PIXELS).convert("CMYK"), "TIFF"))),
)
WIDE = PIXELS[..., 0].astype(np.uint16) * 257
for kind in ("PNG", "TIFF"):
    group.works(
        f"16-bit grey in a {kind} file",
        GREY,
        lambda b, kind=kind: read_image(b.file("w", encoded(Image.fromarray(WIDE), kind))),
    )
group.refused(
    "NaN in a float TIFF file",
    ImageReadError,
    "20 of 20 values are NaN",
    lambda b: read_image(
        b.file("n.tif", encoded(Image.fromarray(np.full((4, 5), np.nan, np.float32)), "TIFF"))
    ),
)
group.refused(
    "signed integers in a TIFF file",
    ImageReadError,
    "whose full scale is unknown",
    lambda b: read_image(
        b.file("i.tif", encoded(Image.fromarray(np.zeros((4, 5), np.int32)), "TIFF"))
    ),
)


def palette(bench: Bench) -> Any:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    path = bench.file("p.png", encoded(image, transparency=bytes([0, 255])))
    return read_image(path)[0].tolist()


group.works("a palette with transparency: white shows through", [[255] * 3, [0, 0, 255]], palette)
group.works(
    "EXIF that is no EXIF",
    (20, 24, 3),
    lambda b: read_image(b.file("e.jpg", encoded(kind="JPEG", exif=b"Exif\0\0rubbish"))).shape,
)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


group.works(
    "EXIF that turns the picture",
    np.rot90(PIXELS, -1),
    lambda b: read_image(b.file("t.png", turned(6))),
)
group.works(
    "EXIF with an orientation that does not exist",
    PIXELS,
    lambda b: read_image(b.file("t.png", turned(77))),
)
group.works(
    "a broken colour profile",
    PIXELS,
    lambda b: read_image(b.file("icc.png", encoded(icc_profile=b"no profile"))),
)

#: A ramp of 16 x 24 pixels, `cjpeg -arithmetic -quality 95`: Pillow does not write such files.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJ"
    "BwYGCAsICQoKCgoKBggLDAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK"
    "CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwD/AO8AxOhIKpfe9VI61M2bF71/jJAQNW8V9FpHmejMpsum/DH2y4O641h3ixL++80nIaVZ2oikXY26K+0S"
    "J/HEVbj0O9oCFipxHMD/2Q=="
)
RAMP = np.dstack([*(np.indices((16, 24))[::-1] * [[[8]], [[12]]]), np.full((16, 24), 90)])


def worst_of_ramp(content: bytes) -> Callable[[Bench], Any]:
    """Whether no pixel is further from the ramp than JPEG's loss explains."""
    return lambda b: bool(np.abs(read_image(b.file("r.jpg", content)) - RAMP).max() <= 8)


group.works("a JPEG file with arithmetic coding", True, worst_of_ramp(ARITHMETIC))
group.works(
    "a progressive JPEG file: its last scan",
    True,
    worst_of_ramp(
        encoded(Image.fromarray(RAMP.astype(np.uint8)), "JPEG", quality=95, progressive=True)
    ),
)


def cut_scan(bench: Bench) -> Any:
    content = encoded(Image.fromarray(RAMP.astype(np.uint8)), "JPEG", progressive=True)
    at = content.rindex(b"\xff\xda")  # the last scan: a decoder has a whole, blurred picture
    return read_image(bench.file("scan.jpg", content[:at]))


group.refused(
    "a progressive JPEG file cut off before its last scan", ImageReadError, "scan.jpg", cut_scan
)


class DroppingDrive(io.BytesIO):
    """A file whose drive goes away after some bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 600:
            raise OSError(5, "Input/output error")
        return super().read(size)


group.refused(
    "a drive that goes away in the middle of a file",
    ImageReadError,
    "Input/output error",
    lambda b: read_image(Image.open(DroppingDrive(encoded()))),
)


def own_parts(bench: Bench) -> Path:
    return Path(shutil.copytree(bench.parts, bench.tmp / "parts"))


def changed_after_scan(change: Callable[[Path], Any]) -> Callable[[Bench], Any]:
    """Fit while something happens to a file between the check of all and the reading."""

    def act(bench: Bench) -> Any:
        import defectcam.classifier

        folder = own_parts(bench)

        def check(paths: Any, **options: Any) -> None:
            check_readable(paths, **options)
            change(folder / "scratch" / "003.png")

        bench.patch.setattr(defectcam.classifier, "check_readable", check)
        classifier = bench.new()
        try:
            return classifier.fit(folder)
        finally:
            assert not hasattr(classifier, "network_")

    return act


group.refused(
    "a file that vanishes between the check and the reading",
    ImageReadError,
    "003.png' does not exist",
    changed_after_scan(lambda path: path.unlink()),
)
group.refused(
    "a file that becomes another one between the check and the reading",
    ImageReadError,
    "003.png' is not an image",
    changed_after_scan(lambda path: path.write_text("other")),
)


def two_broken(bench: Bench) -> Any:
    folder = own_parts(bench)
    (folder / "good" / "000.png").write_bytes(b"")
    (folder / "scratch" / "001.png").write_text("x")
    return bench.new().fit(folder)


group.refused("two broken files in a folder", ImageReadError, "2 images cannot be read", two_broken)


def folder_of(*files: str) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        for name in files:
            path = bench.tmp / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded())
        return labelled_folder(bench.tmp / "data")

    return act


layout = "has another layout than expected"
group.refused("a folder of images without sub-folders", ImageReadError, layout, folder_of("a.png"))
group.refused(
    "sub-folders of which none is good", ImageReadError, layout, folder_of("x/a.png", "y/a.png")
)
group.refused(
    "two sub-folders that may be good",
    ImageReadError,
    "2 labels ('good', 'ok')",
    folder_of("good/a.png", "ok/a.png"),
)
group.refused(
    "a folder that does not exist",
    ImageReadError,
    "does not exist: give a folder",
    lambda b: labelled_folder(b.tmp / "none"),
)
group.refused(
    "a folder without images",
    ImageReadError,
    "Found no image in X",
    lambda b: b.model.predict(str(b.tmp)),
)


def table(content: bytes, **options: Any) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        bench.file("a.png", encoded())
        return load_csv(bench.file("t.csv", content), **options).paths.tolist()

    return act


group.refused("an empty table", ImageReadError, "has 0 rows", table(b""))
group.refused("a table that is not UTF-8", ImageReadError, "cannot be read", table(b"\xff\xfe\0"))
group.refused(
    "a table without the column", ImageReadError, "label_column='label'", table(b"path\na.png\n")
)
group.refused(
    "a table with an empty label", ImageReadError, "in row 1", table(b"path,label\na.png,\n")
)
group.refused(
    "a table that names a missing file",
    ImageReadError,
    "of which 1 do not exist",
    table(b"path,label\nb.png,good\n"),
)
group.refused(
    "a table with another delimiter",
    ImageReadError,
    "pass delimiter",
    table(b"path;label\na.png;good\n"),
)
group.refused(
    "a table with a null character",
    ImageReadError,
    "t.csv",
    table(b"path,label\na.png\0,good\n"),
)
group.refused(
    "a folder for a table",
    ImageReadError,
    "cannot be read as CSV",
    lambda b: load_csv(b.tmp),
)
if os.path.exists("/dev/zero"):
    group.refused(
        "a device for a table", ImageReadError, "is no file", lambda b: load_csv("/dev/zero")
    )

__all__ = ["PIXELS", "encoded"]
