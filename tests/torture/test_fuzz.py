"""Valid small files of every format, changed at random: an array, or an ImageError of one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from tests.torture.cases import Case, encode, scene
from tests.torture.damaged_images import encodings
from tests.torture.fuzz import check_image, check_label, check_mat, mend_png
from tests.torture.odd_labels import IDS
from tests.torture.odd_labels import cases as label_cases

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = settings(
    max_examples=250,
    deadline=2000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("set", "insert", "remove", "repeat", "cut")),
        # most of what a reader believes stands at the start
        st.floats(0, 1).map(lambda share: share**3),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=5,
)


def change(data: bytes, edits: list[Edit]) -> bytes:
    changed = bytearray(data)
    for kind, share, piece in edits:
        at = int(share * len(changed))
        if kind == "set":
            changed[at : at + len(piece)] = piece
        elif kind == "insert":
            changed[at:at] = piece
        elif kind == "remove":
            del changed[at : at + len(piece)]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + 16 * len(piece)]
        else:
            del changed[at + len(piece) :]
    return mend_png(bytes(changed))


def label_files(folder: Path) -> list[bytes]:
    def files(case: Case) -> list[bytes]:
        photographs, labels = folder / case.name / "p", folder / case.name / "l"
        photographs.mkdir(parents=True)
        case.write(photographs, labels)
        return [path.read_bytes() for path in labels.rglob("*") if path.is_file()]

    found = [data for case in label_cases() for data in files(case)]
    return [data for data in found if 0 < len(data) < 9000]


def mat_files() -> list[bytes]:
    found = []
    for values in ({"img": scene()}, {"gt": IDS}, {"gt": IDS.astype(float)}, {"x": "text"}):
        for compress in (False, True):
            stream = io.BytesIO()
            savemat(stream, values, do_compression=compress)
            found.append(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return label_files(tmp_path_factory.mktemp("labels"))


IMAGES = [encode(scene(1, 1), "PNG"), *encodings().values()]


@QUICK
@given(seed=st.sampled_from(IMAGES), edits=EDITS)
def test_photographs(tmp_path: Path, seed: bytes, edits: list[Edit]) -> None:
    read(tmp_path / "input.jpg", change(seed, edits), check_image)


@QUICK
@given(number=st.integers(0), edits=EDITS)
def test_label_maps(tmp_path: Path, labels: list[bytes], number: int, edits: list[Edit]) -> None:
    read(tmp_path / "input.png", change(labels[number % len(labels)], edits), check_label)


@QUICK
@given(seed=st.sampled_from(mat_files()), edits=EDITS)
def test_mat_files(tmp_path: Path, seed: bytes, edits: list[Edit]) -> None:
    read(tmp_path / "input.mat", change(seed, edits), check_mat)


@QUICK
@given(data=st.binary(max_size=300), suffix=st.sampled_from((".jpg", ".mat")))
def test_any_bytes(tmp_path: Path, data: bytes, suffix: str) -> None:
    read(tmp_path / f"input{suffix}", data, check_mat)


def read(path: Path, data: bytes, check: Callable[[Path], None]) -> None:
    path.write_bytes(data)
    check(path)


@pytest.mark.parametrize("kind", [*encodings(), "mat"])
def test_unchanged_files_are_right(tmp_path: Path, kind: str) -> None:
    suffix, data = (".mat", mat_files()[0]) if kind == "mat" else (".png", encodings()[kind])
    read(tmp_path / f"input{suffix}", data, check_image)


def test_the_atheris_targets_run_and_report(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="wheels for Linux alone: the extra `torture`")
    from tests.torture.fuzz import fuzz

    report = fuzz("mat", 3, tmp_path / "findings")
    assert report.executions > 50 and report.findings == []
