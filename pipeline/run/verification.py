"""Whether all that a run holds is as it was written; what is not is computed again by a repair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress, product

from pipeline.compute.scheduler import Execution
from pipeline.errors import DamageError, RunError, StaleError, list_some
from pipeline.progress import Counter, Screen
from pipeline.run.by_hand import BY_HAND, is_by_hand, make_refusal
from pipeline.run.confidence import SUFFIX
from pipeline.run.directory import RunDirectory, is_sealed
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.ledger import Files, Ledger, StageRecord
from pipeline.run.manifest import read_manifest
from pipeline.run.runner import run_named
from pipeline.run.stage import CHECKPOINTS, Stages
from pipeline.settings import StageSettings, make_settings
from pipeline.storage.arrays import METADATA, consolidate, find_damaged, is_consolidated, is_damaged
from pipeline.storage.files import Checkpoint, checksum, confine_writes, remove_file, write_bytes
from pipeline.storage.places import is_remote, list_names, map_requests


@dataclass(frozen=True)
class Damage:
    """A file of a run that is not as it was written."""

    key: str
    file: str
    what: str
    shard: int | None = None
    windows: tuple[int, ...] = ()
    images: tuple[str, ...] = ()

    def describe(self) -> str:
        """Say it in one line."""
        where = self.key if self.shard is None else f"{self.key}, shard {self.shard}"
        text = f"{where}: {self.file} {self.what}" if where else f"{self.file} {self.what}"
        if self.windows:
            text += f"; windows {list_some(self.windows)}"
        if self.images:
            text += f"; images {list_some(self.images)}"
        return text


@dataclass(frozen=True)
class Findings:
    """What a verification has found, and how much it has read."""

    damages: tuple[Damage, ...]
    files: int
    bytes: int


@dataclass(frozen=True)
class _Entry:
    """A file that a record names, and the plan of its stage, where that can be read."""

    plan: StageRecord | None
    key: str
    shard: int | None
    file: str
    bytes: int
    checksum: str


def verify_run(run: RunDirectory, count: Callable[[int], Counter]) -> Findings:
    """Read every file of a run and compare it with what the ledger says was written."""
    # a damaged run.yaml is a finding, and so is one that is gone
    with suppress(DamageError):
        run.require()
    damages = _check_settings(run)
    entries: dict[str, _Entry] = {}
    for key in _list_keys(run):
        listed, broken = _list_entries(run, key)
        damages += broken
        entries |= {entry.file: entry for entry in listed}
    size = 0
    with count(len(entries)) as counter:
        threads = count_threads()
        for entry, what, content in map_ahead(
            lambda entry: (entry, *_check(run, entry)), entries.values(), threads, threads
        ):
            size += entry.bytes
            counter.advance()
            if what and _still_says(run, entry):
                damages.append(_locate(run, entry, what, content))
    damages += _check_stores(run, entries)
    damages += _check_checkpoints(run)
    return Findings(tuple(damages), len(entries), size)


def _check_settings(run: RunDirectory) -> list[Damage]:
    damages = []
    for file in (run.settings_file, run.settings_copy):
        try:
            what = "" if run.is_whole(file) else "is not as it was written"
        except FileNotFoundError:
            what = "is gone"
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
        if what:
            damages.append(Damage("", run.name_file(file), what))
    return damages


def _list_keys(run: RunDirectory) -> list[str]:
    """List the keys of all ledgers, those that have lost their plan too."""
    state = run.path / "state"
    folders = [*state.glob("*/shards"), *state.glob("*/*/shards")]
    bare = {
        folder.parent.relative_to(state).as_posix() for folder in folders if any(folder.iterdir())
    }
    named: list[str] = []
    # a listing may omit folders
    with suppress(RunError):
        named = run.keys_in_settings()
    return sorted({*run.keys(), *bare, *named})


def _list_entries(run: RunDirectory, key: str) -> tuple[list[_Entry], list[Damage]]:
    """List the files that the records of a stage name, and the records that are damaged."""
    ledger = Ledger(run.state(key))
    files: dict[int | None, Files] = {}
    wrong: dict[int | None, str] = {}
    plan = None
    try:
        plan = ledger.read_stage()
        if plan is None:
            wrong[None] = "is gone"
    except RunError:
        wrong[None] = "is not as it was written"
    # after the plan: a stage that is finished meanwhile lacks none
    present = set(ledger.list_shards())
    if plan is not None:
        present |= _find_unlisted(ledger, plan, present)
        files[None] = plan.files
        wrong |= dict.fromkeys(_list_gone(ledger, plan, present), "is gone")
    for shard in sorted(present):
        try:
            record = ledger.read_shard(shard)
        except RunError:
            wrong[shard] = "is not as it was written"
        else:
            files[shard] = record.files if record else {}
    entries = [
        _Entry(plan, key, shard, name, *facts)
        for shard, listed in files.items()
        for name, facts in listed.items()
    ]
    damages = [
        Damage(key, run.name_file(ledger.file(shard)), what, shard) for shard, what in wrong.items()
    ]
    return entries, damages


def _find_unlisted(ledger: Ledger, plan: StageRecord, listed: Set[int]) -> set[int]:
    """Ask for the records that a listing does not show: some stores omit what is there."""
    if not is_remote(ledger.folder):
        return set()
    left = [number for number in range(len(plan.shards)) if number not in listed]
    there = map_requests(ledger.folder, lambda n: ledger.file(n).is_file(), left)
    return set(compress(left, there))


def _list_gone(ledger: Ledger, plan: StageRecord, present: Set[int]) -> list[int]:
    """List the shards of a finished stage that have no record."""
    gone = set(range(len(plan.shards))) - present
    if not plan.finished or not gone:
        return []
    with suppress(RunError):
        if ledger.read_stage() != plan:
            return []  # the stage is at work again
    return sorted(gone - set(ledger.list_shards()))


def _check(run: RunDirectory, entry: _Entry) -> tuple[str, bytes]:
    """Say what is wrong with a file, and give its content where that has changed."""
    try:
        content = (run.path / entry.file).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return "is gone", b""
    except (OSError, RunError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})", b""
    if checksum(content) != entry.checksum and is_by_hand(content, entry.file, entry.plan):
        return BY_HAND, b""
    if len(content) != entry.bytes:
        return f"has {len(content)} bytes, not {entry.bytes}", content
    if checksum(content) != entry.checksum:
        return "has other bytes than were written", content
    return "", b""


def _still_says(run: RunDirectory, entry: _Entry) -> bool:
    """Whether the ledger still has the entry: a stage at work may be replacing the file."""
    ledger = Ledger(run.state(entry.key))
    try:
        record = ledger.read_stage() if entry.shard is None else ledger.read_shard(entry.shard)
    except RunError:
        return True
    return record is not None and record.files.get(entry.file) == (entry.bytes, entry.checksum)


def _locate(run: RunDirectory, entry: _Entry, what: str, content: bytes) -> Damage:
    """Name the windows and images of a damaged file, where it is a shard or a label map."""
    damage = Damage(entry.key, entry.file, what, entry.shard)
    store, marker, place = entry.file.partition("/c/")
    if entry.shard is None:
        return damage
    try:
        manifest = read_manifest(run)
        if not marker:
            label = entry.file.partition("/")[2]
            names = f"{label.removesuffix(SUFFIX)}.png", label
            images = [i.path for i in manifest.images if f"{i.split}/{i.id}.png" in names]
            return replace(damage, images=tuple(images))
        metadata = json.loads((run.path / store / "zarr.json").read_bytes())
        rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        sharding = metadata["codecs"][0]["configuration"]
        chunk, length = sharding["chunk_shape"][0], metadata["shape"][0]
        shard = int(place.partition("/")[0])
    except (OSError, ValueError, LookupError, TypeError, RunError):
        return damage
    damaged = find_damaged(content, rows // chunk)
    first = shard * rows
    windows = [
        window
        for number in damaged
        for window in range(first + number * chunk, first + (number + 1) * chunk)
        if window < min(length, len(manifest.windows))
    ]
    paths = dict.fromkeys(manifest.images[manifest.windows[w].image].path for w in windows)
    return replace(damage, windows=tuple(windows), images=tuple(paths))


def _check_stores(run: RunDirectory, entries: Mapping[str, _Entry]) -> list[Damage]:
    """Check the metadata that the members of a store share, and no record has.

    A stage writes members first, and the store's own metadata after them: while one is not
    finished, they may differ.
    """
    damages = []
    parts = (file.partition(".zarr/") for file in entries)
    for name in sorted({f"{above}.zarr" for above, _, below in parts if below}):
        store = run.path / name
        # a listing that omits the store omits its arrays, too
        listed = (store.name, True) in list_names(store.parent)
        if listed and is_consolidated(store):
            continue
        unfinished = _list_unfinished(run)
        if is_damaged(store):
            what = "is not as it was written"
        elif not listed:
            continue
        elif not (store / METADATA).is_file():
            # who has finished a member has written it
            members = (entry for entry in entries.values() if entry.file.startswith(f"{name}/"))
            if unfinished and all(entry.key in unfinished for entry in members):
                continue
            what = "is gone"
        # looked at again: a stage may have been finished after the first look
        elif unfinished or is_consolidated(store):
            continue
        else:
            what = "is not that of the arrays below it"
        damages.append(Damage("", f"{name}/{METADATA}", what))
    return damages


def _list_unfinished(run: RunDirectory) -> set[str]:
    """List the keys of the stages that are at work, or were interrupted."""
    found = set()
    for key in _list_keys(run):
        with suppress(RunError):  # one that is damaged is named elsewhere
            record = Ledger(run.state(key)).read_stage()
            if record is not None and not record.finished:
                found.add(key)
    return found


def _check_checkpoints(run: RunDirectory) -> list[Damage]:
    """Check the checkpoints of unfinished fits and trainings."""
    damages = []
    for key, name in product(run.keys(), CHECKPOINTS):
        file = run.state(key) / name
        try:
            Checkpoint(file, "").load()
        except DamageError:
            damages.append(Damage(key, run.name_file(file), "is a damaged checkpoint"))
    return damages


def repair_run(
    run: RunDirectory,
    stages: Stages,
    damages: Sequence[Damage],
    execution: Execution,
    screen: Screen,
) -> None:
    """Make again what is damaged: the shards that a damaged file belongs to, in pipeline order.

    The stages that read them stay valid: the same bytes come out again. What a person has changed
    is none, and the stage that wrote it is left alone.
    """
    changed = [damage for damage in damages if damage.what == BY_HAND]
    kept = {damage.key for damage in changed}
    damages = [damage for damage in damages if damage.key not in kept]
    # a ledger that came from elsewhere may name files anywhere
    with confine_writes(run.path):
        _restore_settings(run, damages)
        owners = {damage: damage.key or _find_owner(run, stages, damage) for damage in damages}
        for key in stages.sort_keys(set(owners.values()) - {""}):
            own = [damage for damage in damages if owners[damage] == key]
            with run.lock(key, wait=False, say=screen.warn):
                # what cannot be read counts as not finished, whatever comes after
                _forget(run, key, [damage for damage in own if _is_read_in_planning(damage)])
            _check_inputs(run, stages, key, screen)
            with run.lock(key, wait=False, say=screen.warn):
                _forget(run, key, own)
            _, settings = read_run_settings(run, stages, key)
            run_named(stages, key.partition("/")[0], run, settings, execution, screen)
        for damage in damages:
            store = run.path / damage.file.removesuffix(f"/{METADATA}")
            if not owners[damage] and store.suffix == ".zarr":
                with run.lock(store.name, wait=True, say=screen.warn):
                    consolidate(store)
    for key in sorted(kept):
        names = [damage.file for damage in changed if damage.key == key]
        raise make_refusal(run, key, names)


def _find_owner(run: RunDirectory, stages: Stages, damage: Damage) -> str:
    """Return the key that the metadata of a store is made again with; nothing for other files.

    Nor for a store in which every key has a group of its name: its metadata follows from theirs.
    """
    store = damage.file.removesuffix(f"/{METADATA}")
    for key in stages.sort_keys(_list_keys(run)):
        for artefact in stages.list_artefacts(key):
            inside = artefact.removeprefix(f"{store}/")
            if artefact == store or (inside != artefact and inside != key.partition("/")[2]):
                return key
    return ""


def _is_read_in_planning(damage: Damage) -> bool:
    """Whether a plan would be made from a damaged file; without the tables it lists all anew."""
    return damage.file.startswith("state/") or damage.file.endswith(".parquet")


def _restore_settings(run: RunDirectory, damages: Sequence[Damage]) -> None:
    """Restore ``run.yaml`` from its copy or the other way round; seal it where it was edited."""
    pair = (run.settings_file, run.settings_copy)
    names = [run.name_file(file) for file in pair]
    damaged = {damage.file for damage in damages} & set(names)
    if names[0] not in damaged:
        content = run.settings_file.read_bytes()
        if not is_sealed(content):
            run.seal_settings()  # edited by hand
        elif damaged:
            write_bytes(run.settings_copy, content)
        return
    if len(damaged) == len(pair):
        raise RunError(
            f"{names[0]} and its copy {names[1]} in {run.path} are both damaged; write run.yaml "
            "by hand, without its last line, and run the command again."
        )
    content = run.settings_copy.read_bytes()
    if not is_sealed(content):
        raise DamageError(f"{pair[1]} is not as it was written; run the command again.")
    write_bytes(run.settings_file, content)


def _forget(run: RunDirectory, key: str, damages: Sequence[Damage]) -> None:
    """Take what is damaged out of the ledgers, and files that would be read out of the run."""
    for damage in damages:
        if damage.shard is None:
            remove_file(run.path / damage.file)
        else:
            Ledger(run.state(key)).drop(damage.shard)


def read_run_settings(run: RunDirectory, stages: Stages, key: str) -> tuple[str, StageSettings]:
    """Return the settings with which a stage was run last, and the key that they are kept under.

    Those given stay those given.
    """
    name = key.partition("/")[0]
    # of a stage that is asked for as a whole, a part's own settings, or else those of the whole
    known = next((k for k in (key, name) if run.read_settings(k)), None)
    if known is None:
        raise RunError(f"{run.settings_file} knows nothing of {key}; run the stage again.")
    cls = stages[name] if known == name else stages.load(name).settings_class
    settings = make_settings(cls, name, stages.share_settings(name, run.read_settings(known)))
    given = set(run.read_given(known))
    return known, settings.model_construct(_fields_set=given, **dict(settings))


def _check_inputs(run: RunDirectory, stages: Stages, key: str, screen: Screen) -> None:
    """Refuse to repair a stage whose images are others now: more than the damage would change."""
    stage = stages.load(key.partition("/")[0])
    for settings in stage.divide(read_run_settings(run, stages, key)[1]):
        settings = stage.resolve(run, settings)
        record = Ledger(run.state(stage.key(settings))).read_stage()
        if record is None:
            continue  # what it was made from cannot be known
        plan = stage.plan(run, settings, screen)
        if [shard.fingerprint for shard in plan.shards] == record.shards:
            continue
        raise StaleError(
            f"{key} in {run.path} cannot be repaired alone: what it was made from has changed "
            f"since; run `primaps-pipe {record.command} {run.quoted}{record.options}` instead."
        )
