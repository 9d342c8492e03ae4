"""What a generator is: all that stages, registry and server know of a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from synthmri.training.precision import Precision
from synthmri.training.sampling import Sample


class Generator(ABC):
    """A trained model that draws slices.

    Besides what is below, one that may draw masks of lesions has

        sample_with_masks: as `sample`, uint8 (N, P, S, S): the images and, where P is 2, their masks, 255 inside;

    one that has an autoencoder has

        reconstruct(images, *, batch_size, precision): uint8 (N, S, S) -> uint8 (N, S, S), each through it and back,

    and one that denoises has

        denoising_errors(images, texts, timesteps, *, seed, batch_size, precision): uint8 (N, S, S) and their prompts ->
        float64 (N, T), the error at each timestep of the noise schedule, which an attacker can see. The noise of a
        timestep is the same for all images. Raises UserError for a timestep that the schedule does not have.
    """

    prompted: ClassVar[bool] = False  # whether prompts steer it
    settings: ClassVar[tuple[str, ...]] = ("n", "seed", "batch_size")  # of section `sample`: what its images depend on

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Self:
        """Open what was saved after training. Raises UserError where that cannot be."""

    @abstractmethod
    def sample(
        self,
        seeds: Sequence[int],
        p: Sample,
        *,
        texts: Sequence[str] = (),
        size: int | None = None,
        precision: Precision = "fp32",
        progress: Callable = lambda batches, total: batches,
    ) -> np.ndarray:
        """uint8 (N, S, S): image i from seeds[i], and texts[i] where the model is prompted, alone.

        Neither N nor the company in a batch changes an image. size: px, of models that draw more than one; None = as
        in training. Raises UserError when what is drawn is not finite.
        """
