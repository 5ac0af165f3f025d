"""The run directory: where every artefact of a run lies."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pipeline.errors import RunError, UsageError
from pipeline.files import write_text

FORMAT = 1
DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Run:
    """One run directory.

    ``Run(path)`` names the directory and touches nothing; :meth:`create` makes it and
    :meth:`require` refuses one that is not there.
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """``run.yaml``: the resolved settings of every stage, as run."""
        return self.path / "run.yaml"

    @property
    def manifest_file(self) -> Path:
        """``manifest.parquet``: one row per image."""
        return self.path / "manifest.parquet"

    @property
    def windows_file(self) -> Path:
        """``windows.parquet``: one row per square window."""
        return self.path / "windows.parquet"

    @property
    def features(self) -> Path:
        """``features.zarr``: one array per view."""
        return self.path / "features.zarr"

    @property
    def masks(self) -> Path:
        """``masks.zarr``: proposal ids per pixel, pooled features and areas per proposal."""
        return self.path / "masks.zarr"

    @property
    def em(self) -> Path:
        """``em.zarr``: one group per fit."""
        return self.path / "em.zarr"

    @property
    def heads(self) -> Path:
        """``heads.zarr``: one group per trained head."""
        return self.path / "heads.zarr"

    def codes(self, name: str) -> Path:
        """Return the store of the codes that the head ``name`` makes of the features."""
        return self.path / "codes" / f"{check_name(name)}.zarr"

    def labels(self, name: str) -> Path:
        """Return the folder of the label PNGs made from the fit ``name``."""
        return self.path / _suffixed("labels", name)

    def report(self, name: str) -> Path:
        """Return the folder of the report made from the fit ``name``."""
        return self.path / _suffixed("report", name)

    def state(self, key: str) -> Path:
        """Return the ledger folder of a stage (``extract``, ``em/k12``)."""
        return self.path / "state" / key

    def create(self) -> Run:
        """Make the directory.

        Raises
        ------
        RunError
            It cannot be made, or it is a folder of something else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot make the run directory {self.path}: {error.strerror}."
            ) from error
        foreign = [p for p in self.path.iterdir() if not p.name.startswith(".")]
        if foreign and not self.settings_file.exists():
            raise RunError(
                f"{self.path} is not empty and holds no run.yaml; "
                "give a new or empty folder for the run."
            )
        if not self.settings_file.exists():
            self._write({"format": FORMAT, "stages": {}})
        return self

    def discard_unused(self, *, folder: bool) -> None:
        """Take :meth:`create` back where no stage was ever begun.

        Parameters
        ----------
        folder
            Whether to remove the directory, too, if that leaves it empty.
        """
        if self.keys() or not self.settings_file.is_file():
            return
        shutil.rmtree(self.path / "state", ignore_errors=True)
        self.settings_file.unlink()
        if folder and not any(self.path.iterdir()):
            self.path.rmdir()

    def require(self) -> Run:
        """Return self if the directory is a run.

        Raises
        ------
        RunError
            It is not.
        """
        if not self.settings_file.is_file():
            raise RunError(
                f"{self.path} is no run directory (it has no run.yaml); "
                f"start with `primaps-pipe extract {self.quoted} --dataset NAME --root DIR`."
            )
        return self

    def read_settings(self, key: str) -> dict[str, Any]:
        """Return the resolved settings with which a stage was run last, or nothing."""
        return dict(self._read()["stages"].get(key, {}))

    def read_given(self, key: str) -> dict[str, Any]:
        """Return those settings of a stage that somebody gave, rather than its defaults."""
        return dict(self._read().get("given", {}).get(key, {}))

    def write_settings(self, key: str, settings: dict[str, Any], given: dict[str, Any]) -> None:
        """Remember the resolved settings of a stage, and which of them were given."""
        with self.lock("run", wait=True):
            content = self._read()
            old = (content["stages"].get(key), content.get("given", {}).get(key))
            if old != (settings, given):
                content["stages"][key] = settings
                content.setdefault("given", {})[key] = given
                self._write(content)

    def keys(self) -> list[str]:
        """Return the keys of all stages that were ever run here (``extract``, ``em/k12``, …)."""
        state = self.path / "state"
        files = sorted(state.glob("*/stage.json")) + sorted(state.glob("*/*/stage.json"))
        return [file.parent.relative_to(state).as_posix() for file in files]

    def has_been_run(self, key: str) -> bool:
        """Whether a stage was ever run here."""
        return (self.state(key) / "stage.json").is_file()

    def names(self, stage: str) -> list[str]:
        """Return the names under which a named stage was run (``em`` -> ``default``, ``k12``)."""
        return [k.partition("/")[2] for k in self.keys() if k.startswith(stage + "/")]

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[None]:
        """Keep other processes on this machine out of a part of the run.

        The operating system lets go of the lock when its process ends, however it ends.

        Raises
        ------
        RunError
            Another process holds it, and ``wait`` is false.
        """
        file = self.path / "state" / "locks" / name.replace("/", "+")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"another process is computing {name} in {self.path}; wait until it has ended."
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def quoted(self) -> str:
        """The directory as a shell takes it."""
        return shlex.quote(str(self.path))

    def _read(self) -> dict[str, Any]:
        try:
            content = yaml.safe_load(self.settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"format": FORMAT, "stages": {}}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{self.settings_file} is not YAML: {reason}") from error
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise RunError(f"{self.settings_file} is not a run.yaml: it has no 'stages'.")
        if content.get("format") != FORMAT:
            raise RunError(
                f"{self.path} has format {content.get('format')!r}, this version reads {FORMAT}; "
                "make a new run directory."
            )
        return content

    def _write(self, content: dict[str, Any]) -> None:
        write_text(
            self.settings_file,
            yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100),
        )


def check_name(name: str) -> str:
    """Return the name of a fit if it can name a folder.

    Raises
    ------
    UsageError
        It holds anything but letters, digits, ``.``, ``_`` and ``-``, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: give 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit."
        )
    return name


def _suffixed(folder: str, name: str) -> str:
    return folder if name == DEFAULT_NAME else f"{folder}-{check_name(name)}"
