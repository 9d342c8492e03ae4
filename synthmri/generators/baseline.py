"""What the models that are compared with have in common: a network in pixels, trained on slices from nothing."""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import nn

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators.base import Generator
from synthmri.params import Section
from synthmri.training import loop, sampling
from synthmri.training.precision import Precision

Draw = Callable[[torch.Generator], torch.Tensor]  # -> float32 (B, 1, S, S) in [-1, 1]: this process's share of a batch
Update = Callable[[int, torch.Generator], dict[str, float]]  # (step, its random numbers) -> losses by name


class Baseline(Generator):
    """A network and the {"params": section, "size": pixels} that it was built by."""

    name: ClassVar[str]
    Params: ClassVar[type[Section]]  # section baselines.NAME

    def __init__(self, network: nn.Module, config: dict):
        self.network, self.config = network, config

    @staticmethod
    @abstractmethod
    def build(p: Section, size: int) -> nn.Module:
        """The untrained network for images of `size` pixels. Raises UserError for sizes that it cannot take."""

    @abstractmethod
    def learner(self, p: Section, draw: Draw, *, seed: int, precision: Precision) -> tuple[dict, Update]:
        """What trains the network in place: whatever of it has a state_dict, by name, and the update of one step."""

    @abstractmethod
    def draw(self, generators: list[torch.Generator]) -> torch.Tensor:
        """(B, 1, S, S) in [-1, 1], image i from generator i alone."""

    @classmethod
    def untrained(cls, p: Section, size: int, *, seed: int) -> Self:
        """With initial weights from `seed`."""
        with streams.weights(seed, cls.name, "weights"):
            return cls(cls.build(p, size), {"params": p.model_dump(), "size": size})

    @classmethod
    def fit(
        cls,
        images: np.ndarray,
        p: Section,
        *,
        seed: int,
        points: int,
        checkpoint: Path,
        tick: Callable[[int, float], None],
        snapshot: Callable[[int, Generator], None],
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> tuple[Self, list[dict[str, float]], int]:
        """Train on uint8 (N, S, S). Returns the model of averaged weights, losses a step, floating-point operations.

        snapshot(point, model) is called at `points` + 1 even distances of the training; the rest, and errors, as in
        `loop.run`.
        """
        model = cls.untrained(p, images.shape[1], seed=seed)
        model.network.to(device)
        average = loop.averaged(model.network, max(0.0, 1 - 10 / p.steps))  # over about the last tenth of the training
        averaged = cls(average.module, model.config)
        parts, update = model.learner(
            p, lambda generator: loop.batch(images, p.batch_size, generator).to(device), seed=seed, precision=precision
        )

        def averaging(step: int, generator: torch.Generator) -> dict[str, float]:
            losses = update(step, generator)
            average.update_parameters(model.network)
            return losses

        history, operations = loop.run(
            {"network": model.network, "average": average} | parts, averaging, name=cls.name, seed=seed, steps=p.steps,
            points=points, checkpoint=checkpoint, tick=tick, snapshot=lambda point: snapshot(point, averaged),
        )  # fmt: skip
        return averaged, history, operations

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def sample(
        self, seeds: Sequence[int], p: sampling.Sample, *, texts=(), size=None, precision: Precision = "fp32",
        progress: Callable = lambda batches, total: batches,
    ) -> np.ndarray:  # fmt: skip
        self.network.eval()
        return sampling.in_batches(self.draw, seeds, p.batch_size, self.device, precision, progress)

    def save(self, folder: Path) -> None:
        """model.safetensors and config.json, from which `load` builds it again."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        state = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Self:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            network = cls.build(cls.Params.model_validate(config["params"], strict=False), config["size"])
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"the model in {folder} cannot be opened ({error}); run `dvc repro`") from None
        return cls(network.requires_grad_(False).eval().to(device), config)
