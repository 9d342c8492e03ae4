"""What the models that are compared with have in common: a network in pixels, trained on slices."""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators.base import Generator
from synthmri.params import Section
from synthmri.training import loop, resolution, sampling
from synthmri.training.precision import Precision

Draw = Callable[[torch.Generator], torch.Tensor]  # -> float32 (B, 1, S, S) in [-1, 1]: this process's share of a batch
Update = Callable[[int, torch.Generator], dict[str, float]]  # (step, its random numbers) -> losses by name


class Train(Section):
    """Section `train`, of all baselines."""

    pretrained: bool
    image_px: int = Field(ge=16, le=1024)


class Training(Section):
    """What every section baselines.NAME says."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0, le=0.1)


def channels_last(network: nn.Module) -> nn.Module:
    """With the channels of a pixel side by side in memory, which few channels are quicker with on a processor."""
    return network.to(memory_format=torch.channels_last)


def _px(config: dict) -> int:
    """Pixels of an edge of what a network draws."""
    return config.get("px", config["size"])


class Baseline(Generator):
    """A network and the {"params": section, "size": pixels of the slices, "px": of what it draws} that it was built by.

    beside: by name, the networks that learnt beside it, such as a discriminator; none where it was opened to draw.
    """

    name: ClassVar[str]
    Params: ClassVar[type[Training]]  # section baselines.NAME
    architecture: ClassVar[tuple[str, ...]]  # its fields that say what weights there are
    kinds: ClassVar[int] = 1  # steps that cost differently take turns: so many
    target: ClassVar[str] = ""  # what it predicts, where a network of the same shapes could predict another thing

    def __init__(self, network: nn.Module, config: dict):
        self.network, self.config, self.px = network, config, _px(config)
        self.beside: dict[str, nn.Module] = {}

    @staticmethod
    @abstractmethod
    def build(p: Training, size: int) -> nn.Module:
        """The untrained network for images of `size` pixels. Raises UserError for sizes that it cannot take."""

    @abstractmethod
    def learner(self, p: Training, draw: Draw, *, seed: int, precision: Precision) -> tuple[dict, Update]:
        """What trains the network in place: whatever of it has a state_dict, by name, and the update of one step."""

    def fit_prior(self, images: np.ndarray) -> None:
        """What is learnt of the training slices, uint8 (N, px, px), once the weights stand: nothing, of most models."""

    @abstractmethod
    def draw(self, generators: list[torch.Generator]) -> torch.Tensor:
        """(B, 1, px, px) in [-1, 1], image i from generator i alone."""

    @classmethod
    def untrained(cls, p: Training, size: int, *, seed: int, image_px: int | None = None) -> Self:
        """For slices of `size` pixels, drawn with image_px where these are fewer; initial weights from `seed`."""
        px = min(size, image_px or size)
        with streams.weights(seed, cls.name, "weights"):
            network = channels_last(cls.build(p, px))
        return cls(network, {"params": p.model_dump(), "size": size, "px": px, "target": cls.target})

    @classmethod
    def fit(
        cls,
        images: np.ndarray,
        p: Training,
        *,
        seed: int,
        points: int,
        checkpoint: Path,
        tick: loop.Tick,
        snapshot: Callable[[int, Generator], None],
        start: Path | None = None,
        image_px: int | None = None,
        mirrors: np.ndarray | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> tuple[Self, list[dict[str, float]], int]:
        """Train on uint8 (N, S, S). Returns the model of averaged weights, losses a step, floating-point operations.

        mirrors: bool (N,), which of them it may see mirrored left to right (`views.mirrors`); None = all.
        image_px: it learns the slices in so many pixels, where these are fewer, and what it draws is enlarged.
        start: what `save` wrote with `beside`, whose weights the training begins with; None = random ones. Raises
        UserError where they do not fit. snapshot(point, model) is called at `points` + 1 even distances of the
        training; the rest, and errors, as in `loop.run`.
        """
        model = cls.untrained(p, images.shape[1], seed=seed, image_px=image_px)
        if model.px < images.shape[1]:
            images = resolution.shrunk(images, model.px)
        if start:
            model._begin(start, {"model": model.network})
        model.network.to(device)
        average = loop.averaged(model.network, max(0.0, 1 - 10 / p.steps))  # over about the last tenth of the training
        averaged = cls(average.module, model.config)
        parts, update = model.learner(
            p,
            lambda generator: loop.batch(images, p.batch_size, generator, mirrors).to(device),
            seed=seed,
            precision=precision,
        )
        averaged.beside = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        if start:
            model._begin(start, averaged.beside)

        def averaging(step: int, generator: torch.Generator) -> dict[str, float]:
            losses = update(step, generator)
            average.update_parameters(model.network)
            return losses

        def shown(point: int) -> None:
            averaged.fit_prior(images)
            snapshot(point, averaged)

        history, operations = loop.run(
            {"network": model.network, "average": average} | parts, averaging, name=cls.name, seed=seed, steps=p.steps,
            points=points, checkpoint=checkpoint, tick=tick, snapshot=shown, kinds=cls.kinds,
        )  # fmt: skip
        averaged.fit_prior(images)
        return averaged, history, operations

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def sample(
        self, seeds: Sequence[int], p: sampling.Sample, *, texts=(), size=None, precision: Precision = "fp32",
        progress: Callable = lambda batches, total: batches,
    ) -> np.ndarray:  # fmt: skip
        self.network.eval()

        def drawn(generators: list[torch.Generator]) -> torch.Tensor:
            return resolution.enlarged(self.draw(generators), self.config["size"])

        return sampling.in_batches(drawn, seeds, p.batch_size, self.device, precision, progress)

    def save(self, folder: Path, *, beside: bool = False) -> None:
        """model.safetensors and config.json, from which `load` builds it again.

        beside: also what learnt beside it, and all in half precision: what another training starts from. A
        discriminator knows its training slices best, so those of a user's own stay out.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        for name, network in {"model": self.network, **(self.beside if beside else {})}.items():
            state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
            if beside:
                state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
            save_file(state, folder / f"{name}.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _begin(self, start: Path, networks: dict[str, nn.Module]) -> None:
        """Fill the networks, by the names of their files in `start`."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            theirs = json.loads((start / "config.json").read_text(encoding="utf-8"))
            self._check_target(theirs)
            states = {name: load_file(start / f"{name}.safetensors") for name in networks}
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{start} holds no weights to start from ({error}); `synthmri pretrain --model {self.name}` makes "
                f"them, or set train.pretrained to false"
            ) from None
        try:
            if _px(theirs) != self.px:  # which a network of convolutions alone would not notice
                raise RuntimeError
            for name, network in networks.items():
                network.load_state_dict(states[name])
        except RuntimeError:  # of other names or shapes

            def words(config: dict) -> str:
                return ", ".join(f"{key} {config['params'][key]}" for key in self.architecture) + (
                    f" and {_px(config)} px"
                )

            raise UserError(
                f"{start} is a network of {words(theirs)}; baselines.{self.name} and train.image_px ask for "
                f"{words(self.config)}: make them equal, or set train.pretrained to false"
            ) from None

    @classmethod
    def _check_target(cls, config: dict) -> None:
        """Raise ValueError where the weights were trained to predict something else."""
        if (found := config.get("target", "")) != cls.target:
            raise ValueError(f"its network predicts {found or 'something'!r}, this one {cls.target!r}")

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Self:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            cls._check_target(config)
            network = channels_last(cls.build(cls.Params.model_validate(config["params"], strict=False), _px(config)))
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"the model in {folder} cannot be opened ({error}); run `dvc repro`") from None
        return cls(network.requires_grad_(False).eval().to(device), config)
