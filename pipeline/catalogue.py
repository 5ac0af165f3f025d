"""What of a run may be read: its images by id, and which stages are finished.

Asked for every label map that a training loop reads, so what the ledger says is kept as long as the
plans that say it are the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.condition import list_upstream, read_record, require_fresh
from pipeline.errors import ImageError, RunError, UsageError
from pipeline.ledger import Ledger, StageRecord
from pipeline.manifest import Image, Manifest, read_manifest
from pipeline.places import map_requests
from pipeline.run_directory import DEFAULT_NAME, RunDirectory
from pipeline.settings import did_you_mean
from pipeline.subject import Subject, choose_subject
from pipeline.windows import Window

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _Checked:
    """A stage that was found finished, and the plans that it was found by."""

    record: StageRecord
    keys: tuple[str, ...]
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True)
class _Listing:
    """The images of a run, and those of every id."""

    record: StageRecord
    manifest: Manifest
    by_id: dict[str, list[Image]]


@dataclass
class Catalogue:
    """What of a run may be read.

    Attributes
    ----------
    run
        The run directory.
    """

    run: RunDirectory
    _checked: dict[str, _Checked] = field(default_factory=dict, repr=False)
    _listing: _Listing | None = field(default=None, repr=False)

    def require(self, key: str) -> StageRecord:
        """Return the record of a stage whose artefacts may be read.

        Raises
        ------
        RunError
            The stage was not run, not to its end, or is stale; the message names the command.
        """
        known = self._checked.get(key)
        if known is not None and self._stamp(known.keys) == known.stamps:
            return known.record
        keys = (key, *list_upstream(self.run, key))
        # before the ledger is read: what changes meanwhile is then noticed the next time
        stamps = self._stamp(keys)
        record = require_fresh(self.run, key)
        self._checked[key] = _Checked(record, keys, stamps)
        return record

    def _stamp(self, keys: tuple[str, ...]) -> tuple[Stamp, ...]:
        def stamp(key: str) -> Stamp:
            try:
                status = Ledger(self.run.state(key)).file(None).stat()
            except OSError:
                return 0, 0, 0
            return status.st_ino, status.st_mtime_ns, status.st_size

        return tuple(map_requests(self.run.path, stamp, keys))

    def _list(self) -> _Listing:
        record = self.require("extract")
        if self._listing is None or self._listing.record is not record:
            manifest, by_id = read_manifest(self.run), dict[str, list[Image]]()
            for image in manifest.images:
                by_id.setdefault(image.id, []).append(image)
            self._listing = _Listing(record, manifest, by_id)
        return self._listing

    @property
    def manifest(self) -> Manifest:
        """The images and windows.

        Raises
        ------
        RunError
            ``extract`` is not finished.
        """
        return self._list().manifest

    def check_split(self, split: str) -> None:
        """Refuse a split that has no image.

        Raises
        ------
        UsageError
            It has none.
        """
        splits = self.manifest.splits
        if split not in splits:
            raise UsageError(
                f"no split {split!r}; the run has {', '.join(splits)}{did_you_mean(split, splits)}."
            )

    def find_image(self, id: str, split: str | None) -> Image:
        """Find an image that the stages used; errors as in :meth:`pipeline.run.Run.find_image`."""
        if split is not None:
            self.check_split(split)
        listing = self._list()
        found = [image for image in listing.by_id.get(id, []) if split in (None, image.split)]
        if not found:
            known = [i.id for i in listing.manifest.images if split in (None, i.split)]
            raise UsageError(
                f"no image {id!r} in {f'{split} of ' if split else ''}{self.run.path}"
                f"{did_you_mean(id, known)}; run.images lists them."
            )
        if len(found) > 1:
            splits = ", ".join(image.split for image in found)
            raise UsageError(f"the splits {splits} each have an image {id!r}; give split=.")
        if not found[0].ok:
            raise ImageError(f"image {id!r} was rejected by extract: {found[0].reason}.")
        return found[0]

    def select_windows(self, split: str | None, image: str | None) -> tuple[Window, ...]:
        """Return the windows of an image, of a split, or of all, but for those of rejected images.

        Raises
        ------
        UsageError
            There is no such split or image.
        """
        if image is not None:
            return tuple(self.manifest.windows_of(self.find_image(image, split)))
        if split is not None:
            self.check_split(split)
        return tuple(self.manifest.usable_windows(splits=None if split is None else (split,)))

    def require_labels(self, em: str | None, head: str | None) -> tuple[Subject, StageRecord]:
        """Return the fit or head that is meant, and the record of its evaluation.

        Raises
        ------
        RunError
            It was not evaluated, or that is unfinished or stale.
        UsageError
            There is no such fit or head.
        """
        subject = choose_subject(self.run, em, head)
        key = f"evaluate/{subject.title}"
        if not self.run.has_been_run(key):
            raise RunError(
                f"{subject.key} has not been evaluated in {self.run.path}; run "
                f"`primaps-pipe evaluate {self.run.quoted}{subject.options}` first."
            )
        return subject, self.require(key)

    def describe(self) -> list[tuple[str, str]]:
        """Describe the run in rows of a name and a text, whatever state it is in."""
        known = self.run.keys()
        keys = [key for key in known if not key.startswith("views/")]
        records = {key: read_record(self.run, key) for key in keys}
        rows = []
        extract = records.get("extract")
        if extract is not None and extract.finished:
            images = read_manifest(self.run).images
            splits = dict.fromkeys(image.split for image in images)
            counts = [f"{split} {sum(i.split == split for i in images)}" for split in splits]
            rejected = sum(not image.ok for image in images)
            facts, words = extract.facts, f" ({rejected} rejected)" if rejected else ""
            grid = " x ".join(map(str, facts["grid"]))
            rows += [
                ("images", ", ".join(counts) + words),
                ("features", f"{facts['backbone']}, {facts['channels']} channels"),
                ("windows", f"{facts['size']} pixels, a grid of {grid}"),
            ]
        states = {key: _judge(records, key) for key in keys}
        for state in ("finished", "stale", "unfinished"):
            names = [k.removesuffix(f"/{DEFAULT_NAME}") for k in keys if states[k] == state]
            rows += [(state, ", ".join(names))] if names else []
        return rows or [("empty", f"start with `primaps-pipe extract {self.run.quoted}`")]


def _judge(records: Mapping[str, StageRecord], key: str) -> str:
    """Judge a stage by the plans alone: ``finished``, ``stale`` or ``unfinished``."""
    record = records[key]
    for name, digest in record.inputs.items():
        # parts of views are not among the records, and go with theirs
        if name in records and (records[name].digest != digest or _judge(records, name) == "stale"):
            return "stale"
    return "finished" if record.finished else "unfinished"
