"""Settings of the em stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.registry import Registry
from pipeline.run.directory import CLEAN, DEFAULT_NAME, FINE, check_name
from pipeline.settings import OneOf, StageSettings, execution_setting, setting

if TYPE_CHECKING:
    from stages.em.methods import Method

# A method is a subclass of ``stages.em.methods.Method``, imported when it is asked for.
METHODS: Registry[type[Method]] = Registry(
    "method",
    "primaps_pipe.methods",
    {
        "primaps": "stages.em.methods:Primaps",
        "kmeans": "stages.em.methods:Kmeans",
        "robust": "stages.em.robust:Robust",
    },
)


CORRECTIONS, SPLIT = "corrections", "split:"


def _number(classes: int | str | None) -> int:
    return classes if isinstance(classes, int) else 0


class EmSettings(StageSettings):
    """How class prototypes are fitted.

    A method of another package that has settings of its own brings a subclass: its fields become
    options of ``em``, and its ``version`` is the method's.
    """

    version: ClassVar[int] = 5
    stage_class: ClassVar[str] = "stages.em.stage:Em"

    classes: Annotated[int, Field(ge=2, le=255)] | Literal["auto"] | None = setting(
        None,
        "number of classes K, or auto: estimated from the proposals; needed, but with --head, "
        "whose probe says it",
    )
    clusters: Annotated[int, Field(ge=2, le=254)] | Literal["auto"] | None = setting(
        None,
        "more clusters than classes, for you to name many to one: a number, or auto (8 K, as far "
        "as the proposals bear); as many as classes when not given",
    )
    labels_from: str | None = setting(
        None,
        "what is known beside the features: corrections (yours), a folder of such, or of label "
        "PNGs that are named as the photographs, or split:NAME (the label maps of a split); the "
        "fit then says that it saw labels",
    )
    known_weight: float = setting(
        10.0, "how many positions of the clusters a known one counts for (--labels-from)", gt=0
    )
    most_classes: int = setting(64, "most classes that auto tries", ge=2, le=255)
    method: Annotated[str, OneOf(METHODS)] = setting(
        "primaps",
        "primaps: PriMaPs-EM on the proposals; kmeans: the cosine K-means baseline; robust: "
        "proposals clustered by agreement, positions classified by linear discriminants",
    )
    head: str | None = setting(
        None, "fit the codes of this head, from its cluster probe, instead of the features"
    )
    fine: bool = setting(
        False,
        "sum and label the positions of the fine view (extract --views clean,fine:PX); clusters "
        "are found on the clean one",
    )
    student: Literal["auto", "clean", "photometric"] = setting(
        "auto",
        "what the running prototypes see (primaps): the clean view, or one of the augmented views; "
        "auto: these where extract has cached them",
    )
    mirror: bool = setting(
        True, "show every other window mirrored, drawn anew in every epoch (primaps)"
    )
    epochs: int = setting(50, "passes over the images", ge=1)
    seed: int = setting(0, "names the order of the images and the PCA sample", ge=0)
    keep: bool = execution_setting(
        False,
        "keep the fit there is, with its numbers, though images were added: they are labelled by "
        "its prototypes",
    )
    name: str = setting(DEFAULT_NAME, "name of the fit; a run may hold several")
    splits: tuple[str, ...] = setting(
        (), "split to fit on, repeatable; train where there is one, else all", option="--split"
    )
    learning_rate: float = setting(5e-3, "step size of Adam", gt=0)
    batch_size: int = setting(32, "windows per step", ge=1)
    init_epochs: int = setting(2, "epochs of K-means between PCA and EM", ge=0)
    init_steps: int = setting(
        250, "least steps of that K-means: with fewer it has not converged on small sets", ge=0
    )
    sample: int = setting(
        1024, "windows that the PCA sees, and that the robust fit is calibrated on", ge=1
    )
    focus: float = setting(
        2.0, "gamma of the class weight (1 - mean softmax) ** gamma; 0 weights alike", ge=0
    )
    momentum_every: int = setting(10, "steps between updates of the momentum prototypes", ge=1)
    momentum: float = setting(0.98, "decay of the momentum prototypes", ge=0, lt=1)
    clusterings: int = setting(
        100, "clusterings that vote which proposals belong together (robust)", ge=1
    )
    codebook: int = setting(
        4096,
        "most units that are clustered, or summed with --clusters: more proposals become centroids",
        ge=2,
    )
    shrinkage: float = setting(
        0.1, "share of the identity in the discriminants' covariance (robust)", ge=0, le=1
    )
    stability: bool = setting(
        False,
        "fit two halves of the sample, too, and say which clusters both find: twice the time "
        "(robust, without --clusters)",
    )
    device: str = execution_setting("auto", "auto, cpu, cuda or cuda:N")

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return a group of ``em.zarr``."""
        return [f"em.zarr/{name}"]

    def output_settings(self) -> dict[str, Any]:
        """Return the settings that change what the stage writes, as plain YAML values."""
        values = super().output_settings()
        # fits of before these settings stay as they are
        unset = {n for n in ("clusters", "labels_from") if values.get(n) is None}
        if self.labels_from is None:
            unset.add("known_weight")
        # fits that sum no proposals stay as they are, too
        if self.method != "robust" and not self.joins_clusters:
            unset.add("codebook")
        if not self.fine:
            unset.add("fine")
        if not self.stability:
            unset.add("stability")
        return {name: value for name, value in values.items() if name not in unset}

    @property
    def view(self) -> str:
        """The view whose positions are summed and labelled."""
        return FINE if self.fine else CLEAN

    @property
    def joins_clusters(self) -> bool:
        """Whether evaluation makes classes of clusters, by names or by what is known."""
        return self.clusters is not None or self.labels_from is not None

    @model_validator(mode="after")
    def _need_classes(self) -> EmSettings:
        if self.classes is None and self.head is None:
            raise ValueError("needs --classes (setting em.classes)")
        if self.fine and self.head is not None:
            raise ValueError("--fine: a head makes no codes of the fine view; leave out one of two")
        if isinstance(self.clusters, int) and self.clusters < _number(self.classes):
            raise ValueError(
                f"--clusters {self.clusters} are fewer than the --classes {self.classes} that they "
                "are to be named as"
            )
        return self

    @field_validator("labels_from")
    @classmethod
    def _check_labels_from(cls, source: str | None) -> str | None:
        if source not in (None, CORRECTIONS) and not str(source).removeprefix(SPLIT).strip():
            raise ValueError(f"give {CORRECTIONS}, {SPLIT}NAME, or a folder")
        return source

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)
