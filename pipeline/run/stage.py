"""What a stage is: it plans its shards, prepares its arrays, computes single shards, and finishes.

The same code therefore runs in a loop, in a pool, or on a cluster.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Generic, TypeVar, cast

from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.registry import Registry
from pipeline.run.directory import RunDirectory, Subject, choose_subject, name_subject
from pipeline.run.ledger import ShardRecord, read_record
from pipeline.settings import StageSettings, make_settings, setting
from pipeline.storage.files import Checkpoint, fingerprint

S = TypeVar("S", bound=StageSettings)
T = TypeVar("T", bound="SubjectSettings")


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: what it is made from, and how many items it holds."""

    fingerprint: str
    items: int


@dataclass(frozen=True)
class Plan:
    """All shards of a stage.

    Attributes
    ----------
    shards
        In the order of the arrays.
    facts
        Small JSON-able findings that later stages and the report read (channels, grid, source of
        the weights).
    words
        What some facts are called, in the plural, where they have changed: "the ... have changed".
    redo
        Shards to compute again although their fingerprint is known.
    why
        What is said of them; nothing where it is that their input files have changed.
    sources
        What was read outside the run, by name: JSON-able, other whenever it is another.
    payload
        Anything that :meth:`Stage.prepare` needs from :meth:`Stage.plan`; not kept.
    """

    shards: list[ShardPlan]
    facts: dict[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    redo: frozenset[int] = frozenset()
    why: str = ""
    sources: dict[str, Any] = field(default_factory=dict)
    payload: Any = None


class Stage(ABC, Generic[S]):
    """One of the pipeline's steps. Instances hold no state: they travel to other processes.

    What a stage writes through ``pipeline.storage`` is noted down with its checksum: what
    :meth:`compute` writes in the record of the shard, what :meth:`prepare` and :meth:`finish`
    write in that of the stage.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    # the verb of the command line, where it is not the name
    verb: ClassVar[str] = ""
    # whether its shards read the images themselves
    reads_images: ClassVar[bool] = False
    settings_class: ClassVar[type[StageSettings]]

    @property
    def version(self) -> int:
        """Version of what the stage computes."""
        return self.settings_class.version

    def key(self, settings: S) -> str:
        """Return the ledger key; a stage that may run under several names adds the name."""
        return self.name

    def choose_key(self, run: RunDirectory, given: Mapping[str, Any]) -> str:
        """Return the ledger key that the given settings mean, before all settings are known."""
        return self.name

    def name_options(self, settings: S) -> str:
        """Return the command-line options that name the key, with a space in front, or nothing."""
        return ""

    def divide(self, settings: StageSettings) -> list[S]:
        """Return the settings of the single runs, each under a key of its own, that are asked for.

        One, with the settings themselves, but for a stage whose settings ask for several at once.
        """
        return [cast(S, settings)]

    def adopt(self, run: RunDirectory, settings: StageSettings, *, wait: bool) -> None:
        """Take over settings that ask for several runs, before the first: refuse or remember them.

        ``wait`` says whether to wait for a run that another process is at work on.
        """

    def inputs(self, run: RunDirectory, settings: S) -> list[str]:
        """Return the keys of the stages that this one reads."""
        return []

    def resolve(self, run: RunDirectory, settings: S) -> S:
        """Replace every ``auto`` or absent value by what it means here."""
        return settings

    @abstractmethod
    def plan(self, run: RunDirectory, settings: S, screen: Screen) -> Plan:
        """Say which shards there will be; writes nothing."""

    def protect(
        self,
        run: RunDirectory,
        settings: S,
        plan: Plan,
        pending: Sequence[int],
        screen: Screen,
        *,
        force: bool,
    ) -> None:
        """Refuse to lose a person's work; called before anything changes, with what is pending."""

    def shares_work(self, settings: S) -> bool:
        """Whether a shard shares its work out itself, among ``scheduler.current_team()``."""
        return False

    @abstractmethod
    def prepare(self, run: RunDirectory, settings: S, plan: Plan) -> None:
        """Allocate what the shards are written into; touches nothing that is right already."""

    @abstractmethod
    def compute(self, run: RunDirectory, settings: S, shard: int) -> dict[str, Any]:
        """Compute and write one shard; return a small JSON-able result for its record."""

    def find(self, run: RunDirectory, settings: S, records: dict[int, ShardRecord]) -> str:
        """Return a fingerprint of what only the computation could tell, for the later stages."""
        return ""

    def finish(
        self, run: RunDirectory, settings: S, records: dict[int, ShardRecord], screen: Screen
    ) -> list[str]:
        """Do what needs all shards; return lines for the screen."""
        return []


class Stages(Registry[type[StageSettings]]):
    """The stages of a pipeline, in its order, by their settings: to load a stage takes seconds."""

    def load(self, name: str) -> Stage[Any]:
        """Import a stage and return it."""
        return resolve_name(self[name].stage_class)()  # type: ignore[no-any-return]

    @property
    def followed_by(self) -> dict[str, str]:
        """The verbs that run their own stage, and the stages that they run then."""
        return {cls.follows: name for name, cls in self.items() if cls.follows}

    def list_artefacts(self, key: str) -> list[str]:
        """Return the files and folders, relative to the run, that are written under a key."""
        name, _, part = key.partition("/")
        return self[name].list_artefacts(part) if name in self else []

    def sort_keys(self, keys: Iterable[str]) -> list[str]:
        """Sort ledger keys in the order of the pipeline."""
        order = {name: number for number, name in enumerate(self)}
        return sorted(
            set(keys), key=lambda key: (order.get(key.partition("/")[0], len(order)), key)
        )

    def share_settings(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return those options of a verb that are for its own stage, or the one that follows."""
        own, following = self[name].model_fields, self.followed_by
        if self[name].follows:
            return {key: value for key, value in given.items() if key in own}
        others = self[following[name]].model_fields if name in following else {}
        return {key: value for key, value in given.items() if key in own or key not in others}

    def recall_settings(
        self, name: str, run: RunDirectory, given: Mapping[str, Any], *, forget: bool
    ) -> StageSettings:
        """Build a stage's settings: its defaults, what was given to it before and is given now."""
        before: dict[str, Any] = {}
        if not forget:
            before = self.share_settings(
                name, run.read_given(self.load(name).choose_key(run, given))
            )
        return make_settings(self[name], name, before, given)


CHECKPOINTS = ("training.npz", "fit.npz")


class Training(Stage[S]):
    """A stage of one shard that learns, goes on from its last checkpoint, and writes at its end."""

    # one of CHECKPOINTS, which a verification looks at
    checkpoint_file: ClassVar[str] = CHECKPOINTS[0]

    def plan_one(
        self,
        run: RunDirectory,
        settings: S,
        windows: Sequence[Window],
        items: int,
        facts: dict[str, Any],
    ) -> Plan:
        """Plan the shard, made from some windows of what the inputs hold."""
        sources = {key: read_record(run, key).digest for key in self.inputs(run, settings)}
        print_ = fingerprint(
            self.name,
            settings.version,
            settings.output_settings(),
            sources,
            [window.index for window in windows],
        )
        return Plan([ShardPlan(print_, items)], facts)

    def prepare(self, run: RunDirectory, settings: S, plan: Plan) -> None:
        """Nothing to allocate: what is learned is small and written at the end."""

    def checkpoint(self, run: RunDirectory, settings: S, print_: str = "") -> Checkpoint:
        """Return where the training of a fingerprint is saved as it goes."""
        return Checkpoint(run.state(self.key(settings)) / self.checkpoint_file, print_)

    def close(self, run: RunDirectory, settings: S, store: Path, screen: Screen) -> None:
        """Make the store whole, and forget the checkpoint."""
        # help pages, which need the stages' settings, do without zarr
        from pipeline.storage.arrays import consolidate

        with run.lock(store.name, wait=True, say=screen.warn):
            consolidate(store)
        # not before the training is in the ledger: a kill between costs nothing
        self.checkpoint(run, settings).remove()


class SubjectSettings(StageSettings):
    """Settings of a stage that runs once for every fit or head that is evaluated."""

    em: str | None = setting(
        None, "name of the fit; `default`, or the only one there is, when not given"
    )
    head: str | None = setting(
        None, "name of a head whose cluster probe is evaluated, instead of a fit"
    )

    @property
    def subject(self) -> Subject:
        """Return the fit or head that is evaluated; one of them has to be named."""
        return name_subject(self.em, self.head)


class SubjectStage(Stage[T]):
    """A stage that runs once for every fit or head that is evaluated."""

    def key(self, settings: T) -> str:
        """Return ``<stage>/<name of the fit>``, or ``<stage>/head-<name of the head>``."""
        return f"{self.name}/{settings.subject.title}"

    def choose_key(self, run: RunDirectory, given: Mapping[str, Any]) -> str:
        """Return the key of the fit or head given, or of the fit that is meant."""
        subject = choose_subject(run.require(), given.get("em"), given.get("head"))
        return f"{self.name}/{subject.title}"

    def name_options(self, settings: T) -> str:
        """Return ``--head``, or ``--em`` where the fit is not the default."""
        return settings.subject.options
