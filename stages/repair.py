"""The repair of a run: what a verification found damaged is computed again, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.compute.scheduler import Execution
from pipeline.errors import DamageError, RunError, StaleError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, is_sealed
from pipeline.run.ledger import Ledger
from pipeline.run.verification import Damage
from pipeline.settings import StageSettings, make_settings
from pipeline.storage.arrays import consolidate
from pipeline.storage.files import confine_writes, remove_file, write_bytes
from stages import SETTINGS, load_stage, run_stage, share_settings


def repair_run(
    run: RunDirectory, damages: Sequence[Damage], execution: Execution, screen: Screen
) -> None:
    """Make again what is damaged: the shards that a damaged file belongs to, in pipeline order.

    The stages that read them stay valid: the same bytes come out again.
    """
    # a ledger that came from elsewhere may name files anywhere
    with confine_writes(run.path):
        _restore_settings(run, damages)
        owners = {damage: _find_owner(run, damage) for damage in damages}
        for key in sort_keys(owners.values()):
            own = [damage for damage in damages if owners[damage] == key]
            with run.lock(key, wait=False, say=screen.warn):
                # what cannot be read counts as not finished, whatever comes after
                _forget(run, key, [damage for damage in own if _is_read_in_planning(damage)])
            _check_inputs(run, key, screen)
            with run.lock(key, wait=False, say=screen.warn):
                _forget(run, key, own)
            run_stage(key.partition("/")[0], run, _read_settings(run, key), execution, screen)
        for store in (run.heads, run.em):
            if any(damage.file == f"{store.name}/zarr.json" for damage in damages):
                with run.lock(store.name, wait=True, say=screen.warn):
                    consolidate(store)


def sort_keys(keys: Iterable[str]) -> list[str]:
    """Sort ledger keys in the order of the pipeline; without that of the run itself."""
    order = list(SETTINGS)
    return sorted(set(keys) - {""}, key=lambda key: (order.index(key.partition("/")[0]), key))


def _find_owner(run: RunDirectory, damage: Damage) -> str:
    """Return the key of the stage that makes a damaged file again; nothing for the run's own."""
    if damage.key:
        return damage.key
    store, _, name = damage.file.rpartition("/")
    if name != "zarr.json":
        return ""
    # the metadata of a store that the shards of a stage share; fits and heads are groups of theirs
    kind, _, head = store.removesuffix(".zarr").partition("/")
    return {"features": "extract", "masks": "masks", "codes": f"encode/{head}"}.get(kind, "")


def _is_read_in_planning(damage: Damage) -> bool:
    """Whether a plan would be made from a damaged file; without the tables it lists all anew."""
    return damage.file.startswith("state/") or damage.file.endswith(".parquet")


def _restore_settings(run: RunDirectory, damages: Sequence[Damage]) -> None:
    """Restore ``run.yaml`` from its copy or the other way round; seal it where it was edited."""
    pair = (run.settings_file, run.settings_copy)
    names = [file.relative_to(run.path).as_posix() for file in pair]
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


def _read_settings(run: RunDirectory, key: str) -> StageSettings:
    """Return the settings with which a stage was run last; those given stay those given."""
    name = key.partition("/")[0]
    # of a stage that is asked for as a whole, a part's own settings, or else those of the whole
    known = next((k for k in (key, name) if run.read_settings(k)), None)
    if known is None:
        raise RunError(f"{run.settings_file} knows nothing of {key}; run the stage again.")
    cls = SETTINGS[name] if known == name else load_stage(name).settings_class
    settings = make_settings(cls, name, share_settings(name, run.read_settings(known)))
    given = set(run.read_given(known))
    return settings.model_construct(_fields_set=given, **dict(settings))


def _check_inputs(run: RunDirectory, key: str, screen: Screen) -> None:
    """Refuse to repair a stage whose images are others now: more than the damage would change."""
    stage: Any = load_stage(key.partition("/")[0])
    for settings in stage.divide(_read_settings(run, key)):
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
