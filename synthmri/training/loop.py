"""What trainings share: batches, the schedule of the learning rate, checkpoints, and the loop of the baselines."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from synthmri.errors import UserError
from synthmri.training import distributed


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: a linear warm-up, then half a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: they depend on the step alone, so a resumed run goes on as if never stopped."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write tensors and numbers so that a kill at any moment leaves the old checkpoint or the new one.

    Of several processes the main one writes. Raises UserError where the disk takes no more; the old checkpoint is then
    still there.
    """
    if not distributed.is_main():
        return
    path = Path(path)
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch raises the latter, and the former is its context
        part.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"the checkpoint {path} cannot be written ({reason.strerror}); make room on its disk, or give yourself the "
            "right to write there, then run it again: it goes on from the last checkpoint"
        ) from None


def load_checkpoint(path: Path) -> dict | None:
    """The state that was saved last, or None. Only tensors and plain values are admitted.

    Raises UserError where the file is no such thing, or where some processes see it and others do not.
    """
    there = Path(path).exists()
    if distributed.total(there) != there * distributed.count():
        raise UserError(
            f"some of {distributed.count()} processes see the checkpoint {path} and others do not; put the repository "
            "on a disk that all machines share"
        )
    if not there:
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises nearly anything; its text advises to load them unsafely
        reason = f"({type(error).__name__})"
    else:
        if isinstance(state, dict):
            return state
        reason = f"(it holds a {type(state).__name__})"
    raise UserError(f"the checkpoint {path} cannot be read {reason}; remove it, and the training starts anew")


def batch(images: np.ndarray, count: int, shift_px: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 (N, H, W) -> float32 (count, 1, H, W) in [-1, 1]: images drawn with replacement.

    Augmented as suits MRI: half of them mirrored, each moved by up to `shift_px` pixels along both axes over black.
    Of several processes each gets its share of the `count` images.
    """
    share = distributed.share(count)

    def draw(below: int) -> torch.Tensor:
        return torch.randint(below, (count,), generator=generator)[share.rows]

    rows, mirrored, down, right = draw(len(images)), draw(2), draw(2 * shift_px + 1), draw(2 * shift_px + 1)
    x = torch.from_numpy(np.stack([images[i] for i in rows.tolist()]))
    x = torch.where(mirrored.bool()[:, None, None], x.flip(2), x)
    height, width = x.shape[1:]
    x = nn.functional.pad(x, (shift_px,) * 4)
    moves = zip(x, down.tolist(), right.tolist(), strict=True)
    x = torch.stack([image[i : i + height, j : j + width] for image, i, j in moves])
    return x[:, None].float() / 127.5 - 1


def halvings(size: int) -> int:
    """How often `size` pixels halve down to 4. Raises UserError unless they do."""
    levels = (size // 4).bit_length() - 1
    if size < 16 or size != 4 * 2**levels:
        raise UserError(f"the baselines take images of 16, 32, 64, 128, 256, ... pixels; data.image_size is {size}")
    return levels


def averaged(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """The exponential moving average of a model's weights (EMA), and its other buffers as they are."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)


def run(
    parts: dict,
    update: Callable[[int, torch.Generator], dict[str, float]],
    *,
    name: str,
    seed: int,
    steps: int,
    points: int,
    checkpoint: Path,
    tick: Callable[[int, float], None],
    snapshot: Callable[[int], None],
) -> tuple[list[dict[str, float]], int]:
    """Train a baseline: call `update(step, generator)` for every step, which returns its losses by name.

    parts: whatever has a state_dict (networks, optimisers, averages), by name. All that is random about a step comes
    from its generator, so a run that was killed goes on from `checkpoint` to the same result. At `points` + 1 even
    distances, the start and the end among them, `snapshot(0 .. points)` is called and then the checkpoint written.
    Returns the losses of every step, and the floating-point operations of the whole (those of one step, counted by
    torch, times the steps). Of several processes, `update` returns this one's share of the losses. Raises UserError
    naming section baselines.`name` when a loss stops being finite.
    """
    from torch.utils.flop_counter import FlopCounterMode

    ends = [round(steps * k / points) for k in range(points + 1)]
    first, history, operations = 0, [], 0
    if state := load_checkpoint(checkpoint):
        for key, part in parts.items():
            part.load_state_dict(state["parts"][key])
        first, history, operations = state["step"], state["history"], state["operations"]
    else:
        for k in [k for k, end in enumerate(ends) if end == 0]:
            snapshot(k)
    for step in range(first, steps):
        if operations:
            losses = update(step, step_generator(seed, step))
        else:
            with FlopCounterMode(display=False) as counter:
                losses = update(step, step_generator(seed, step))
            operations = round(distributed.total(counter.get_total_flops()))
        losses = {key: distributed.total(value) for key, value in losses.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            told = ", ".join(f"{key} {value}" for key, value in losses.items())
            raise UserError(f"training {name} diverged at step {step} ({told}); lower baselines.{name}.learning_rate")
        history.append(losses)
        tick(step, next(iter(losses.values())))
        for k in [k for k, end in enumerate(ends) if k and end == step + 1]:  # several, of more points than steps
            snapshot(k)
        if step + 1 in ends or (step + 1) % 500 == 0:
            state = {key: part.state_dict() for key, part in parts.items()}
            save_checkpoint(
                checkpoint, {"parts": state, "step": step + 1, "history": history, "operations": operations}
            )
    return history, operations * steps


def save_model(folder: Path, model: nn.Module, config: dict) -> None:
    """model.safetensors and config.json, from which `load_model` builds it again."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_model(folder: Path, build: Callable[[dict], nn.Module], *, device: str = "cpu") -> nn.Module:
    """Open what `save_model` wrote: `build` makes the network from the config. Raises UserError when it cannot."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = build(config)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the model in {folder} cannot be opened ({error}); run `dvc repro`") from None
    return model.requires_grad_(False).eval().to(device)
