"""The run directory: where every artefact of a run lies, and which fit or head of it is meant."""

from __future__ import annotations

import re
import shlex
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import DamageError, RunError, UsageError, did_you_mean
from pipeline.storage.files import (
    checksum,
    make_folder,
    read_json,
    remove_tree,
    write_bytes,
    write_json,
    write_text,
)
from pipeline.storage.locks import Lock, Say, hold_lock, probe_conditions
from pipeline.storage.places import is_remote, list_names, resolve_inside

FORMAT = 2
DEFAULT_NAME = "default"
# Views in `features.zarr` that may be labelled: that of the windows, and the same at more pixels.
CLEAN, FINE = "clean", "fine"
# Before the checksum in the last line of run.yaml.
_SEAL = "# checksum of the lines above: "
# What a seal may have become: its checksum without its words, or the other way round.
_SEAL_LEFT = re.compile(rb"# checksum of the lines above|[0-9a-f]{32}\s*\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@lru_cache(maxsize=2)
def _load(text: bytes) -> Any:
    """Parse YAML, which a run that has nothing to do would spend much of its time on."""
    return yaml.safe_load(text)


@dataclass(frozen=True)
class _Place:
    """Where something lies in every run."""

    name: str

    def __get__(self, run: RunDirectory, _: type[RunDirectory]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDirectory:
    """One run directory, or one prefix of an object store; to name it touches nothing."""

    path: Path

    settings_file = _Place("run.yaml")  # the resolved settings of every stage, as run
    settings_copy = _Place("state/run.yaml")  # the same, for a repair
    manifest_file = _Place("manifest.parquet")  # one row per image
    windows_file = _Place("windows.parquet")  # one row per square window
    store_file = _Place("state/store.json")  # whether an object store honours what locks rest on
    features = _Place("features.zarr")  # one array per view
    masks = _Place("masks.zarr")  # proposal ids per pixel, pooled features and areas per proposal
    em = _Place("em.zarr")  # one group per fit
    heads = _Place("heads.zarr")  # one group per trained head
    corrections = _Place("corrections")  # what a person says; no stage writes below it

    def codes(self, name: str) -> Path:
        """Return the store of the codes that the head ``name`` makes of the features."""
        return self.path / "codes" / f"{check_name(name)}.zarr"

    def labels(self, name: str) -> Path:
        """Return the folder of the label PNGs made from the fit ``name``."""
        return self.path / suffixed("labels", name)

    def report(self, name: str) -> Path:
        """Return the folder of the report made from the fit ``name``."""
        return self.path / suffixed("report", name)

    def names_file(self, title: str) -> Path:
        """Return the file in which the user names the clusters of the fit or head ``title``.

        One that lies in the run itself, where it was looked for once, stays in use.
        """
        name = f"{suffixed('names', title)}.yaml"
        file, old = self.corrections / name, self.path / name
        if not old.exists():
            return file
        if file.exists():
            raise RunError(
                f"names lie in {old} and in {file}; write those that count into {file}, and remove "
                "the other."
            )
        return old

    def state(self, key: str) -> Path:
        """Return the ledger folder of a stage (``extract``, ``em/k12``)."""
        return self.path / "state" / key

    def name_file(self, file: Path) -> str:
        """Return the name of a file below the run, as records have it."""
        return file.relative_to(self.path).as_posix()

    def create(self) -> RunDirectory:
        """Make the directory."""
        try:
            make_folder(self.path)
        except OSError as error:
            raise RunError(
                f"cannot make the run directory {self.path}: {error.strerror}."
            ) from error
        if self.settings_file.exists():
            return self
        if any(not path.name.startswith(".") for path in self.path.iterdir()):
            self._refuse_lost()
            raise RunError(
                f"{self.path} is not empty and holds no run.yaml; "
                "give a new or empty folder for the run."
            )
        self._write({"format": FORMAT, "stages": {}})
        return self

    def probe_store(self, say: Say) -> None:
        """Find out, once in a run, whether an object store honours what locks rest on."""
        if not is_remote(self.path) or self.store_file.is_file():
            return
        honoured = probe_conditions(self.path / "state")
        if honoured is not None:
            write_json(self.store_file, {"conditional_writes": honoured}, noted=False)
            if not honoured:
                say(self.describe_store())

    def describe_store(self) -> str:
        """Say that the locks of a run are not to be relied on; nothing where they are."""
        known = read_json(self.store_file) if is_remote(self.path) else None
        if not isinstance(known, dict) or known.get("conditional_writes", True):
            return ""
        return (
            f"the object store of {self.path} ignores If-None-Match or If-Match, on which locks "
            "rest: run one command at a time on this run."
        )

    def keys_in_settings(self) -> list[str]:
        """Return the keys of the stages of which ``run.yaml`` knows, whatever a listing shows."""
        return [key for key in self._read()["stages"] if self.has_been_run(key)]

    def discard_unused(self, *, folder: bool) -> None:
        """Take :meth:`create` back where no stage was ever begun."""
        if self.keys() or not self.settings_file.is_file():
            return
        if any((self.path / "state" / "locks").glob("*")):
            return  # another process is about to begin one
        with suppress(OSError):
            remove_tree(self.path / "state")
        # what refuses to be removed is in nobody's way
        with suppress(OSError):
            self.settings_file.unlink()
            if folder and not any(self.path.iterdir()):
                self.path.rmdir()

    def require(self) -> RunDirectory:
        """Return self if the directory is a run."""
        if not self.settings_file.is_file():
            self._refuse_lost()
            raise RunError(
                f"{self.path} is no run directory (it has no run.yaml); "
                f"start with `primaps-pipe extract {self.quoted} --dataset NAME --root DIR`."
            )
        self._read()
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
            copied = False
            with suppress(FileNotFoundError):
                # a kill between the two files leaves the older copy
                copied = self.settings_copy.read_bytes() == self.settings_file.read_bytes()
            if old != (settings, given) or not copied:
                content["stages"][key] = settings
                content.setdefault("given", {})[key] = given
                self._write(content)

    def is_whole(self, file: Path) -> bool:
        """Whether ``run.yaml`` or its copy is as it was written, or ``run.yaml`` edited by hand."""
        text = file.read_bytes()
        return is_sealed(text) or (file == self.settings_file and self._is_edit(text))

    def seal_settings(self) -> None:
        """Seal and copy a ``run.yaml`` that was edited by hand."""
        with self.lock("run", wait=True):
            self._write(self._read())

    def keys(self) -> list[str]:
        """Return the keys of all stages that were ever run here (``extract``, ``em/k12``, …)."""
        return _list_keys(self.path / "state", "")

    def has_been_run(self, key: str) -> bool:
        """Whether a stage was ever run here."""
        return (self.state(key) / "stage.json").is_file()

    def names(self, stage: str) -> list[str]:
        """Return the names under which a named stage was run (``em`` -> ``default``, ``k12``)."""
        return [k.partition("/")[2] for k in self.keys() if k.startswith(stage + "/")]

    def lock(
        self, name: str, *, wait: bool, say: Say | None = None
    ) -> AbstractContextManager[Lock]:
        """Keep other processes, on any machine, out of a part of the run."""
        file = resolve_inside(self.path, "state/locks/" + name.replace("/", "+"))
        return hold_lock(file, what=f"{name} in {self.path}", wait=wait, say=say)

    @property
    def quoted(self) -> str:
        """The directory as a shell takes it."""
        return shlex.quote(str(self.path))

    def _read(self) -> dict[str, Any]:
        try:
            text = self.settings_file.read_bytes()
        except FileNotFoundError:
            self._refuse_lost()
            return {"format": FORMAT, "stages": {}}
        return self._parse(text)

    def _parse(self, text: bytes) -> dict[str, Any]:
        if not is_sealed(text) and _SEAL.encode() in text:
            raise DamageError(
                f"{self.settings_file} is not as it was written; `primaps-pipe verify "
                f"{self.quoted} --repair` restores it, and without its last line it is taken as "
                "it is."
            )
        try:
            content = deepcopy(_load(text))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise DamageError(f"{self.settings_file} is not YAML: {reason}") from error
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise DamageError(f"{self.settings_file} is not a run.yaml: it has no 'stages'.")
        if content.get("format") != FORMAT:
            raise RunError(
                f"{self.path} was written by another version (format {content.get('format')!r}, "
                f"this one reads {FORMAT}); make a new run directory with the settings in its "
                "run.yaml, or go on with the version that wrote it."
            )
        return content

    def _is_edit(self, text: bytes) -> bool:
        """Whether somebody took the seal off ``run.yaml``, rather than the disk a part of it."""
        if _SEAL_LEFT.search(text):
            return False
        with suppress(FileNotFoundError):
            above, seal, _ = self.settings_copy.read_bytes().rpartition(_SEAL.encode())
            if seal and text != above and (above + seal).startswith(text):
                return False  # cut off
        try:
            self._parse(text)
        except RunError:
            return False
        return True

    def _refuse_lost(self) -> None:
        if self.settings_copy.is_file():
            raise DamageError(
                f"{self.settings_file} is gone; `primaps-pipe verify {self.quoted} --repair` "
                "restores it."
            )

    def _write(self, content: dict[str, Any]) -> None:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        sealed = f"{text}{_SEAL}{checksum(text.encode())}\n"
        write_text(self.settings_file, sealed)
        # what nothing else tells, should the file be damaged
        write_bytes(self.settings_copy, sealed.encode(), noted=False)


def _list_keys(state: Path, above: str) -> list[str]:
    found = list_names(state / above)
    keys = [above] if above and ("stage.json", False) in found else []
    # what needs no listing: the records of shards may be many
    skipped = "shards" if keys else "locks" if not above else None
    for name, inner in found:
        if inner and name != skipped and "/" not in above:
            keys += _list_keys(state, f"{above}/{name}" if above else name)
    return sorted(keys, key=lambda key: (key.count("/"), key))


def is_sealed(text: bytes) -> bool:
    """Whether the text of a ``run.yaml`` is as it was written."""
    above, seal, below = text.rpartition(_SEAL.encode())
    return bool(seal) and below == f"{checksum(above)}\n".encode()


def check_name(name: str) -> str:
    """Return the name of a fit if it can name a folder."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: give 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit."
        )
    return name


def suffixed(folder: str, name: str) -> str:
    """Return the name of a folder or file of a fit: ``labels``, ``labels-k12``."""
    return folder if name == DEFAULT_NAME else f"{folder}-{check_name(name)}"


@dataclass(frozen=True)
class Subject:
    """One fit, or one head."""

    kind: Literal["em", "head"]
    name: str

    @property
    def key(self) -> str:
        """Ledger key of the stage that made it."""
        return f"{self.kind}/{self.name}"

    @property
    def title(self) -> str:
        """Name of the folders that are written: ``labels-<title>``, ``report-<title>``."""
        return self.name if self.kind == "em" else f"head-{self.name}"

    @property
    def options(self) -> str:
        """The command-line options that name it, with a space in front, or nothing."""
        default = self == Subject("em", DEFAULT_NAME)
        return "" if default else f" --{self.kind} {self.name}"

    @property
    def names(self) -> tuple[str | None, str | None]:
        """The name of the fit and that of the head, of which one is None."""
        return (self.name, None) if self.kind == "em" else (None, self.name)

    @property
    def inputs(self) -> list[str]:
        """Keys of the stages that an evaluation reads."""
        codes = [f"encode/{self.name}"] if self.kind == "head" else []
        return ["extract", self.key, *codes]


def name_subject(em: str | None, head: str | None) -> Subject:
    """Return what settings name that :func:`choose_subject` has completed."""
    if head is not None:
        return Subject("head", head)
    assert em is not None
    return Subject("em", em)


def choose_subject(run: RunDirectory, em: str | None, head: str | None) -> Subject:
    """Find what two options mean: the head, the fit, or the one fit that there is."""
    if em is not None and head is not None:
        raise UsageError(f"--em {em} and --head {head}: give one of them.")
    fits, heads = run.names("em"), run.names("head")
    if head is None:
        subject, others = Subject("em", _choose_fit(run, fits, em)), [f"head-{h}" for h in heads]
    elif head in heads:
        subject, others = Subject("head", head), fits
    else:
        raise UsageError(
            f"--head {head!r}: the run has {', '.join(heads) or 'no head yet'}"
            f"{did_you_mean(head, heads)}; "
            f"train one with `primaps-pipe head {run.quoted} --method stego`."
        )
    if subject.title in others:
        raise UsageError(
            f"--{subject.kind} {subject.name}: a fit and a head of the run would both write to "
            f"{run.labels(subject.title).name}; give one of them another --name."
        )
    return subject


def _choose_fit(run: RunDirectory, names: list[str], name: str | None) -> str:
    if name in names:
        return name
    if name is not None:
        raise UsageError(
            f"--em {name!r}: the run has {', '.join(names) or 'no fit yet'}"
            f"{did_you_mean(name, names)}; "
            f"fit it with `primaps-pipe em {run.quoted} --classes K --name {name}`."
        )
    if not names:
        raise RunError(
            f"{run.path} has no fit yet; run `primaps-pipe em {run.quoted} --classes K` first."
        )
    if DEFAULT_NAME in names or len(names) == 1:
        return DEFAULT_NAME if DEFAULT_NAME in names else names[0]
    raise UsageError(f"the run has several fits ({', '.join(names)}); choose one with --em NAME.")
