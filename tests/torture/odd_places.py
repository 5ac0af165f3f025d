"""Names that are hard to write down, files that are none, and images that are easily mixed up."""

from __future__ import annotations

import os
import socket
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.datasets.listing import MAX_ID_BYTES
from tests.torture.cases import Case, Expected, SkipError, encode, put, scene

DEPTH = 10_000


def cases() -> Iterator[Case]:
    """Give all cases of this module."""
    yield from _names()
    yield from _long_names()
    yield from _special_files()
    yield from _links()
    yield from _folders()
    yield from _pairs()


def ids_of(seed: int, width: int, height: int) -> np.ndarray:
    """Draw a label map that tells one image's from another's."""
    return np.full((height, width), seed, np.uint8)


def _twins(kind: str, name: str, *paths: str, labels: dict[str, str | None] | None = None) -> Case:
    """Make a case of several images, each of its own size and colours, with its own label map.

    ``labels`` gives the label map of every path; by default the path with ``.png`` behind it.
    """
    own = {path: f"{path}.png" for path in paths} if labels is None else labels

    def write(photographs: Path, folder: Path) -> list[Expected]:
        found = []
        for seed, path in enumerate(paths, start=1):
            pixels = scene(40 + 2 * seed, 30 + seed, seed)
            label = own[path]
            ids = ids_of(seed, 40 + 2 * seed, 30 + seed)
            try:
                put(photographs, path, encode(pixels, "PNG"))
                if label is not None:
                    put(folder, label, encode(ids, "PNG"))
            except (OSError, UnicodeEncodeError) as error:
                raise SkipError(f"the file system holds no such names ({error})") from error
            found.append(
                Expected(
                    *(path, "right"),
                    size=(40 + 2 * seed, 30 + seed),
                    pixels=pixels,
                    label=label,
                    ids=None if label is None else ids,
                )
            )
        return found

    return Case(kind, name, write)


def _names() -> Iterator[Case]:
    names = {
        "newline": "a\nb",
        "newline at the end": "a\n",
        "carriage return": "a\rb",
        "tab": "a\tb",
        "escape sequence": "\x1b[31mred\x1b[0m",
        "bell and backspace": "a\x07\x08b",
        "delete": "a\x7fb",
        "single quote": "it's",
        "double quotes": 'say "cheese"',
        "backslash": "a\\b\\..\\c",
        "script": "<script>alert(1)<|script>",
        "markup": "<img src=x onerror=alert(1)>&amp;",
        "rich markup": "[bold red]x[|bold red]",
        "unbalanced rich markup": "[|]",
        "template": "{{ 7 * 7 }}{% raw %}",
        "format": "{0} %s %d %(x)s ${HOME} $(id) `id`",
        "shell": "; rm -rf ~ #",
        "pipe": "| cat",
        "glob": "*?[a-z]",
        "leading dash": "-rf",
        "leading dashes": "--help",
        "leading space": " a",
        "trailing space": "a ",
        "only a space": " ",
        "trailing dot": "a.",
        "many dots": "a...b",
        "non-breaking space": "a\u00a0b",
        "right to left": "a\u202egnp.b",
        "zero width": "a\u200bb",
        "byte order mark": "\ufeffa",
        "line separator": "a\u2028b",
        "emoji": "\U0001f4f7\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "private use": "\uf8ff\U0010fffd",
        "noncharacter": "a\ufffeb\uffff",
        "Zalgo": "z" + "\u0301\u0316\u0323" * 20,
        "Greek": "φωτογραφία",
        "comma": "a,b;c",
        "hash and question": "a#b?c=d",
        "percent": "100%25%00%2e%2e%2f",
        "colon": "C:a",
        "url": "s3:||bucket|a".replace("|", "_"),
        "tilde": "~root",
        "equals": "a=b",
        "number": "0",
        "negative": "-1",
        "dots only by suffix": "a.png.jpg.tif",
    }
    for name, stem in names.items():
        yield _twins("name", name, f"{stem.replace('|', '_')}.png")
    reserved = (
        "CON",
        "nul",
        "aux",
        "com1",
        "None",
        "null",
        "NaN",
        "true",
        "__proto__",
        "zarr.json",
    )
    yield _twins("name", "reserved words", *(f"{word}.png" for word in reserved))
    yield _twins("name", "a newline in a folder", "x\ny/a.png", "x y/a.png")
    yield _twins("name", "names of the run's own files", "run.yaml.png", "state.png", "classes.png")

    def not_text(photographs: Path, labels: Path) -> list[Expected]:
        try:
            for name in (b"\xff.png", b"\xe9t\xe9.png", b"folder \xff/a.png", b"\xff.txt"):
                put(photographs, os.fsdecode(name), encode(scene(), "PNG"))
        except OSError as error:
            raise SkipError("the file system holds UTF-8 names only") from error
        put(photographs, "fine.png", encode(scene(), "PNG"))
        reason = "name is not UTF-8: rename it"
        return [
            Expected("\\xff.png", "rejected", f"a file whose {reason}", by_path=True),
            Expected("\\xe9t\\xe9.png", "rejected", f"a file whose {reason}", by_path=True),
            Expected("folder \\xff", "rejected", f"a folder whose {reason}", by_path=True),
            Expected("fine.png", "right", pixels=scene()),
        ]

    yield Case("name", "bytes that are no UTF-8", not_text)


def _long_names() -> Iterator[Case]:
    yield _twins(
        "long name",
        "255 bytes",
        "a" * 251 + ".png",
        labels={"a" * 251 + ".png": "a" * 251 + ".png"},
    )
    wide = "é" * 125 + "b"
    yield _twins(
        "long name",
        "255 bytes of two-byte characters",
        f"{wide}.png",
        labels={f"{wide}.png": f"{wide}.png"},
    )
    yield _twins("long name", "twins of 251 bytes", f"{'t' * 247}.png", f"{'t' * 247}.jpg")
    yield _twins(
        "long name",
        "255 bytes with a long suffix",
        "w" * 250 + ".tiff",
        labels={"w" * 250 + ".tiff": "w" * 250 + ".png"},
    )

    def twins(photographs: Path, labels: Path) -> list[Expected]:
        found = []
        for suffix in (".png", ".jpg"):
            put(photographs, "u" * 251 + suffix, encode(scene(), "PNG"))
            reason = "too long for its label map's"
            found.append(Expected("u" * 251 + suffix, "rejected", reason, by_path=True))
        return found

    yield Case("long name", "twins of 255 bytes, whose label maps would need 259", twins)
    folder = "/".join("d" * 200 for _ in range(9))
    yield _twins("long name", "a path of 1,800 bytes", f"{folder}/a.png")


def _special_files() -> Iterator[Case]:
    def fifo(photographs: Path, labels: Path) -> list[Expected]:
        if not hasattr(os, "mkfifo"):
            raise SkipError("no named pipes here")
        os.mkfifo(photographs / "pipe.png")
        return [Expected("pipe.png", "rejected", "not a regular file")]

    def unix_socket(photographs: Path, labels: Path) -> list[Expected]:
        if not hasattr(socket, "AF_UNIX"):
            raise SkipError("no local sockets here")
        here = Path.cwd()
        os.chdir(photographs)  # the path of a socket has at most 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("socket.png")
        finally:
            os.chdir(here)
        return [Expected("socket.png", "rejected", "not a regular file")]

    def device(photographs: Path, labels: Path) -> list[Expected]:
        found = []
        for name in ("zero", "random", "tty", "null", "full"):
            (photographs / f"{name}.png").symlink_to(f"/dev/{name}")
            if Path(f"/dev/{name}").exists():
                found.append(Expected(f"{name}.png", "rejected", "not a regular file"))
        return found

    def system_file(photographs: Path, labels: Path) -> list[Expected]:
        found = []
        for name in ("kmsg", "self/mem", "self/status", "self/pagemap"):
            if Path("/proc", name).is_file():
                path = f"{name.replace('/', ' ')}.png"
                (photographs / path).symlink_to(f"/proc/{name}")
                found.append(Expected(path, "rejected", "^empty file$"))
        if not found:
            raise SkipError("no /proc here")
        return found

    def node(photographs: Path, labels: Path) -> list[Expected]:
        try:
            os.mknod(photographs / "node.png", 0o020666, os.makedev(1, 5))
        except (OSError, AttributeError) as error:
            raise SkipError("this user makes no devices") from error
        return [Expected("node.png", "rejected", "not a regular file")]

    def locked(photographs: Path, labels: Path) -> list[Expected]:
        if not hasattr(os, "geteuid") or os.geteuid() == 0:
            raise SkipError("the superuser may read every file; see test_inputs.py")
        put(photographs, "locked.png", encode(scene(), "PNG")).chmod(0)
        return [Expected("locked.png", "rejected", "permission denied")]

    def sparse(photographs: Path, labels: Path) -> list[Expected]:
        for name, size, head in (
            ("film", 2**31 - 1, b"\0\0\0\x20ftyp"),
            ("disk", 2**31 + 1, b"BM"),
        ):
            with (photographs / f"{name}.png").open("wb") as file:
                file.write(head)
                try:
                    file.truncate(size)
                except OSError as error:
                    raise SkipError("no sparse files here") from error
        return [
            Expected("film.png", "rejected", "^not an image"),
            Expected("disk.png", "rejected", "the limit is 2147483648"),
        ]

    yield Case("special file", "named pipe", fifo)
    yield Case("special file", "socket", unix_socket)
    yield Case("special file", "links to devices", device)
    yield Case("special file", "links to the system's own files", system_file)
    yield Case("special file", "device", node)
    yield Case("special file", "no permission", locked)
    yield Case("special file", "files of 2 GiB", sparse)


def _links() -> Iterator[Case]:
    def circle(photographs: Path, labels: Path) -> list[Expected]:
        (photographs / "self.png").symlink_to("self.png")
        (photographs / "one.png").symlink_to("two.png")
        (photographs / "two.png").symlink_to("one.png")
        (photographs / "loop").symlink_to("loop")
        reason = "cannot be opened|symbolic links"
        return [Expected(f"{name}.png", "rejected", reason) for name in ("self", "one", "two")]

    def above(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "real/a.png", encode(scene(), "PNG"))
        (photographs / "real" / "up").symlink_to("..")
        (photographs / "real" / "top").symlink_to(photographs.parent)
        (photographs / "again").symlink_to("real")
        return [Expected("real/a.png", "right", pixels=scene())]

    def dangling(photographs: Path, labels: Path) -> list[Expected]:
        (photographs / "gone.png").symlink_to("nowhere.png")
        (photographs / "gone folder").symlink_to("nowhere")
        return [Expected("gone.png", "rejected", "(?i)no such file")]

    def outside(photographs: Path, labels: Path) -> list[Expected]:
        away = photographs.parent.parent / f"away {photographs.name}"
        put(away / "deep", "b.png", encode(scene(seed=4), "PNG"))
        put(away, "a.png", encode(scene(seed=5), "PNG"))
        (photographs / "linked").symlink_to(away / "deep")
        (photographs / "a.png").symlink_to(away / "a.png")
        return [
            Expected("linked/b.png", "right", pixels=scene(seed=4)),
            Expected("a.png", "right", pixels=scene(seed=5)),
        ]

    def twice(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "a.png", encode(scene(), "PNG"))
        (photographs / "b.png").symlink_to("a.png")
        os.link(photographs / "a.png", photographs / "c.png")
        return [Expected(f"{name}.png", "right", pixels=scene()) for name in "abc"]

    def long_chain(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "a.txt", encode(scene(), "PNG"))
        before = "a.txt"
        for number in range(60):
            (photographs / f"link {number}").symlink_to(before)
            before = f"link {number}"
        (photographs / "end.png").symlink_to(before)
        return [Expected("end.png", "rejected", "cannot be opened|symbolic links")]

    yield Case("link", "circles", circle)
    yield Case("link", "to folders above", above)
    yield Case("link", "dangling", dangling)
    yield Case("link", "out of the root", outside)
    yield Case("link", "one file under three names", twice)
    yield Case("link", "chain of sixty", long_chain)


def _folders() -> Iterator[Case]:
    def like_an_image(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "x.png/inner.png", encode(scene(), "PNG"))
        (photographs / "empty.jpg").mkdir()
        return [Expected("x.png/inner.png", "right", pixels=scene())]

    def deep(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "above.png", encode(scene(), "PNG"))
        make_deep(photographs, DEPTH)
        first = (MAX_ID_BYTES - len(photographs.name)) // 2 + 1
        folder = "/".join("d" * first)
        return [
            Expected("above.png", "right", pixels=scene()),
            Expected(folder, "rejected", "too deep to be looked into", by_path=True),
        ]

    def run_directory(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "a.png", encode(scene(), "PNG"))
        put(photographs, "old run/labels/all/a.png", encode(scene(seed=8), "PNG"))
        put(photographs, "old run/run.yaml", b"format: 1\n")
        (photographs / "old run" / "state").mkdir()
        return [Expected("a.png", "right", pixels=scene())]

    def hidden(photographs: Path, labels: Path) -> list[Expected]:
        for name in (".git/a.png", ".a.png", "b/.hidden/a.png", "._a.png", "..png"):
            put(photographs, name, encode(scene(), "PNG"))
        put(photographs, "c.png", encode(scene(), "PNG"))
        return [Expected("c.png", "right", pixels=scene())]

    yield Case("folder", "named like an image", like_an_image)
    yield Case("folder", f"{DEPTH:,} deep", deep)
    yield Case("folder", "another run", run_directory)
    yield Case("folder", "hidden", hidden)


def make_deep(folder: Path, depth: int) -> None:
    """Make folders called ``d`` within each other, deeper than a path can say."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    inner = os.open("a.png", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(inner, encode(scene(), "PNG"))
    os.close(inner)
    os.close(descriptor)


def remove_deep(folder: Path) -> None:
    """Remove what :func:`make_deep` made: down to the innermost folder, and back."""
    descriptor = os.open(folder, os.O_RDONLY)
    depth = 0
    while True:
        try:
            inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        except FileNotFoundError:
            break
        os.close(descriptor)
        descriptor, depth = inner, depth + 1
    for level in range(depth):
        if level == 0:
            os.unlink("a.png", dir_fd=descriptor)
        outer = os.open("..", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = outer
        os.rmdir("d", dir_fd=descriptor)
    os.close(descriptor)


def _pairs() -> Iterator[Case]:
    yield _twins("pair", "one stem, two suffixes", "a.jpg", "a.png")
    yield _twins(
        "pair", "one stem, many suffixes", *(f"a.{s}" for s in ("jpg", "png", "tif", "bmp"))
    )
    yield _twins(
        "pair",
        "one stem, two suffixes, one label map without suffix",
        "a.jpg",
        "b.png",
        "b.jpg",
        labels={"a.jpg": "a.png", "b.png": "b.png", "b.jpg": None},
    )
    yield _twins("pair", "one stem in two folders", "x/a.png", "y/a.png", "a.png")
    yield _twins(
        "pair",
        "one stem in two folders, one label map",
        "x/a.jpg",
        "y/a.jpg",
        labels={"x/a.jpg": "x/a.png", "y/a.jpg": None},
    )
    yield _twins(
        "pair", "a name that is another's label map", "c.jpg", "c.jpg.png", "c.jpg.png.png"
    )
    yield _twins("pair", "names in each other", "a.png", "a.png.png", "a.png.png.png")
    yield _twins("pair", "case of the name", "Photo.png", "photo.png", "PHOTO.png")
    yield _twins("pair", "case of the suffix", "a.png", "a.PNG", "a.Png")
    yield _twins("pair", "case of the folder", "X/a.png", "x/a.png")
    nfc, nfd = (unicodedata.normalize(form, "Zoë é Å") for form in ("NFC", "NFD"))
    yield _twins("pair", "normal forms of one name", f"{nfc}.png", f"{nfd}.png")
    yield _twins("pair", "normal forms of one folder", f"{nfc}/a.png", f"{nfd}/a.png")
    yield _twins("pair", "compatibility forms", "ﬁ.png", "fi.png", "ⅸ.png", "ix.png")
    yield _twins("pair", "space and none", "a .png", "a.png", " a.png")
    yield _twins("pair", "folder and file", "a/b.png", "a b.png", "a_b.png")

    def ambiguous(photographs: Path, labels: Path) -> list[Expected]:
        found = []
        for name in ("c.jpg", "c.jpg.png"):
            put(photographs, name, encode(scene(), "PNG"))
            found.append(Expected(name, "right", label=None))
        put(labels, "c.jpg.png", encode(ids_of(1, 48, 36), "PNG"))
        return found

    yield Case("pair", "a label map that may be of two images", ambiguous)
