"""Which fit or head of a run is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RunError, UsageError
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from pipeline.settings import StageSettings, did_you_mean, setting


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


def choose_subject(run: RunDirectory, em: str | None, head: str | None) -> Subject:
    """Find what two options mean: the head, the fit, or the one fit that there is."""
    if em is not None and head is not None:
        raise UsageError(f"--em {em} and --head {head}: give one of them.")
    heads = run.names("head")
    if head is None:
        fit = Subject("em", _choose_fit(run, em))
        if fit.title in [Subject("head", name).title for name in heads]:
            raise _clash(run, "em", fit)
        return fit
    if head not in heads:
        raise UsageError(
            f"--head {head!r}: the run has {', '.join(heads) or 'no head yet'}"
            f"{did_you_mean(head, heads)}; "
            f"train one with `primaps-pipe head {run.quoted} --method stego`."
        )
    subject = Subject("head", head)
    if subject.title in run.names("em"):
        raise _clash(run, "head", subject)
    return subject


def _clash(run: RunDirectory, option: str, subject: Subject) -> UsageError:
    return UsageError(
        f"--{option} {subject.name}: a fit and a head of the run would both write to "
        f"{run.labels(subject.title).name}; give one of them another --name."
    )


def _choose_fit(run: RunDirectory, name: str | None) -> str:
    names = run.names("em")
    if name is not None:
        if name not in names:
            raise UsageError(
                f"--em {name!r}: the run has {', '.join(names) or 'no fit yet'}"
                f"{did_you_mean(name, names)}; "
                f"fit it with `primaps-pipe em {run.quoted} --classes K --name {name}`."
            )
        return name
    if not names:
        raise RunError(
            f"{run.path} has no fit yet; run `primaps-pipe em {run.quoted} --classes K` first."
        )
    if DEFAULT_NAME in names or len(names) == 1:
        return DEFAULT_NAME if DEFAULT_NAME in names else names[0]
    raise UsageError(f"the run has several fits ({', '.join(names)}); choose one with --em NAME.")
