"""A trained model at work: adapt it to labelled images, and let it classify others."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from maml_jax.config import Config
from maml_jax.config.checks import check_together
from maml_jax.data import pixels
from maml_jax.data.images import Look
from maml_jax.data.pictures import squares
from maml_jax.errors import ConfigError, DataError
from maml_jax.models.programs import Programs
from maml_jax.nn.norm import Normalization
from maml_jax.tree import PyTree

_AT_ONCE = 64  # images that go to the device together
_MOST_TOGETHER = 2000  # that may be normalised together
_FOLDS = 10


class Predictions(NamedTuple):
    """What an adapted model says of images.

    Attributes:
      probabilities: float32 `[n, classes]`; a row sums to 1.
      classes: names or numbers of the classes, as labels had them.
    """

    probabilities: np.ndarray
    classes: tuple

    @property
    def labels(self) -> list:
        """The likeliest class of each image."""
        return [self.classes[i] for i in self.probabilities.argmax(-1)]


class SupportLoss(NamedTuple):
    """The loss on the support set, before adaptation and after it."""

    before: float
    after: float


class Score(NamedTuple):
    """So many were right, out of how many."""

    right: int
    of: int

    @property
    def interval95(self) -> tuple[float, float]:
        """Wilson's interval of the share of right ones, at 95 %."""
        z2, share = 1.96**2, self.right / self.of
        middle = (share + z2 / (2 * self.of)) / (1 + z2 / self.of)
        half = np.sqrt(z2 * (share * (1 - share) / self.of + z2 / (4 * self.of**2))) / (1 + z2 / self.of)
        return float(middle - half), float(middle + half)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A meta-trained classifier of images.

    Attributes:
      config: of its training.
      channels: of its images, 1 or 3.
      params: meta-parameters.
      stats: the statistics that outlive an episode.
      step: meta-steps taken.
    """

    config: Config = dataclasses.field(repr=False)
    channels: int
    params: PyTree = dataclasses.field(repr=False)
    stats: PyTree = dataclasses.field(repr=False)
    step: int
    _programs: dict[tuple, Programs] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def look(self) -> Look:
        """What images are made into before the model sees them."""
        d = self.config.data
        return Look(d.stored_size or d.image_size, self.channels, pixels.color(d.background))

    @property
    def transductive(self) -> bool:
        """Whether it was trained with query images normalised together."""
        return Normalization.parse(self.config.model.norm, self.config.inner.steps).transductive

    def adapt(
        self, images: Iterable[Any], labels: Sequence[Any], transductive: bool = False, steps: int | None = None
    ) -> "Adapted":
        """Adapts to labelled images, of two classes or more, any number of each.

        The loss is the mean over images, so that a class counts by how many it has.

        Args:
          images: `[n, height, width, channels]` or n arrays of any sizes, uint8 or floating point in [0, 1]; they are
            resized and normalised as in training.
          labels: n names or numbers of classes.
          transductive: normalise the images of a later `predict` together, where the model was trained so. By default
            they are normalised by the moments of the support set (`metabn`), and a prediction depends on its image
            alone. Makes no difference to a model that was trained otherwise.
          steps: inner steps; None for as many as at its test.

        Raises:
          DataError: images or labels are malformed.
          ConfigError: there are more classes than the model has outputs, or it cannot be had inductive.
        """
        images, labels = squares(images, self.look), _plain(labels)
        if len(images) != len(labels):
            raise DataError(f"there are {len(images)} images, but {len(labels)} labels")
        classes = _sorted(labels)
        if len(classes) < 2:
            found = f"all labels are {classes[0]!r}" if classes else "there are no images"
            raise DataError(f"{found}; to tell classes apart takes two at least")
        steps = self.config.eval.steps if steps is None else steps
        programs = self._programs_for(len(classes), steps, transductive and self.transductive)
        numbers = np.array([classes.index(label) for label in labels], np.int32)
        with self._precision():
            params, stats, losses = programs.adapt(self.params, self.stats, images, numbers)
        loss = SupportLoss(*(float(value) for value in jax.device_get(losses)))
        return Adapted(self, tuple(classes), loss, transductive and self.transductive, params, stats, programs)

    def cross_validate(
        self, images: Iterable[Any], labels: Sequence[Any], transductive: bool = False, steps: int | None = None
    ) -> Score:
        """How often it is right on images of the support set that it did not adapt to.

        One image of each class is left out, in up to ten ways, and judged after adapting to the rest. So this is the
        accuracy to expect with an image less of each class.

        Args:
          images: as of `adapt`.
          labels: as of `adapt`, each at least twice.
          transductive: as of `adapt`.
          steps: as of `adapt`.

        Raises:
          DataError: as `adapt`, or a class has one image only.
        """
        images, labels = squares(images, self.look), _plain(labels)
        rows = {label: [i for i, other in enumerate(labels) if other == label] for label in _sorted(labels)}
        counts = [len(members) for members in rows.values()]
        if min(counts, default=0) < 2:
            raise DataError("cross-validation takes two images of each class at least")
        right = of = 0
        for fold in range(min(max(counts), _FOLDS)):
            out = [members[fold % len(members)] for members in rows.values()]  # so that all folds are of one size
            rest = [i for i in range(len(labels)) if i not in out]
            adapted = self.adapt(images[rest], [labels[i] for i in rest], transductive, steps)
            said = adapted.predict(images[out]).labels
            judged = [said[k] == label for k, (label, members) in enumerate(rows.items()) if fold < len(members)]
            right, of = right + sum(judged), of + len(judged)
        return Score(right, of)

    def _programs_for(self, classes: int, steps: int, transductive: bool) -> Programs:
        key = classes, steps, transductive
        if key not in self._programs:
            self._programs[key] = Programs(self.config, self._outputs(classes), *key)
        return self._programs[key]

    def _outputs(self, classes: int) -> int:
        """How many outputs the model has for so many classes."""
        config, trained = self.config.copy_and_resolve_references(), self.config.task.way
        config.eval.way = classes
        try:
            check_together(config)
        except ConfigError as error:
            if classes > trained:
                raise ConfigError(
                    f"the model has {trained} outputs, for at most {trained} classes, and these are {classes}; models "
                    "trained with model.head=zero, shared or prototypes take any number of classes"
                ) from error
            return trained
        return classes

    def _precision(self) -> contextlib.AbstractContextManager:
        exact = self.config.model.precision == "float32"
        return jax.default_matmul_precision("float32") if exact else contextlib.nullcontext()


def _plain(labels):
    return labels.tolist() if hasattr(labels, "tolist") else list(labels)


def _sorted(labels):
    try:
        return sorted(set(labels))
    except TypeError as error:
        raise DataError("labels are names or numbers of classes, all of one kind") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A model that has adapted to a support set.

    Attributes:
      trained: what it was before.
      classes: names or numbers of the classes, sorted.
      support_loss: before and after adaptation.
      transductive: whether images of one call are judged together, and depend on each other.
      params: adapted parameters.
      stats: statistics after adaptation.
    """

    trained: Trained = dataclasses.field(repr=False)
    classes: tuple
    support_loss: SupportLoss
    transductive: bool
    params: PyTree = dataclasses.field(repr=False)
    stats: PyTree = dataclasses.field(repr=False)
    _programs: Programs = dataclasses.field(repr=False)

    def predict(self, images: Iterable[Any]) -> Predictions:
        """Classifies images, given as to `Trained.adapt`, in bounded memory unless transductive.

        Raises:
          DataError: images are malformed, or too many to be judged together.
        """
        return Predictions(self._judge(images, "probabilities"), self.classes)

    def features(self, images: Iterable[Any]) -> np.ndarray:
        """What the adapted encoder makes of images, float32 `[n, features]`; see `predict`."""
        return self._judge(images, "features")

    def _judge(self, images, what):
        look, parts = self.trained.look, []
        with self.trained._precision():
            if self.transductive and len(images := list(images)):
                images = squares(images, look)
                if len(images) > _MOST_TOGETHER:
                    raise DataError(f"at most {_MOST_TOGETHER} images can be judged together, not {len(images)}")
                return np.asarray(self._programs.together(self.params, self.stats, images, what=what))
            for batch in _batches(images):
                made = squares(batch, look)
                padded = np.concatenate([made, np.zeros((_AT_ONCE - len(made), *made.shape[1:]), np.uint8)])
                result = self._programs.one_by_one(self.params, self.stats, padded, len(made), what=what)
                parts.append(np.asarray(result)[: len(made)])
        return np.concatenate(parts)


def _batches(images):
    """Lists of up to `_AT_ONCE` images; an empty one if there are none, to give a result its width."""
    batch, begun = [], False
    for image in images:
        batch.append(image)
        if len(batch) == _AT_ONCE:
            yield batch
            batch, begun = [], True
    if batch or not begun:
        yield batch
