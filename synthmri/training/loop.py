"""What trainings share: batches, the schedule of the learning rate, checkpoints, and the loop of the baselines."""

import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from synthmri import streams
from synthmri.errors import UserError
from synthmri.training import distributed

Tick = Callable[[int, float, float], None]  # told after each step: its number from 0, its loss, its learning rate


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: a linear warm-up, then half a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For every weight alike."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def check_compiler(parameter: str) -> None:
    """Raise UserError where there is no C++ compiler for torch.compile, which `parameter` asks for."""
    if not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError(f"{parameter} = true needs a C++ compiler; install g++, or set it to false")


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, *, max_grad_norm: float | None = None) -> None:
    """One step down the gradient of `loss`, summed over the processes and, where asked, clipped."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.sum_gradients(weights)
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(weights, max_grad_norm)
    optimizer.step()


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


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W) -> float32 (N, 1, H, W) in [-1, 1], a copy."""
    return torch.from_numpy(np.array(images))[:, None].float() / 127.5 - 1


def batch(
    images: np.ndarray, count: int, generator: torch.Generator, mirrors: np.ndarray | None = None
) -> torch.Tensor:
    """uint8 (N, S, S) -> float32 (count, 1, S, S) in [-1, 1]: images drawn with replacement.

    Augmented as suits MRI: half of them, or of `mirrors`, bool (N,), mirrored left to right, each moved by up to a
    fortieth of the edge (6 of 256 pixels) along both axes over black. Of several processes each gets its share of the
    `count` images.
    """
    share = distributed.share(count)
    size = images.shape[-1]
    reach = size // 40

    def draw(below: int) -> list[int]:
        return torch.randint(below, (count,), generator=generator)[share.rows].tolist()

    picked = zip(draw(len(images)), draw(2), draw(2 * reach + 1), draw(2 * reach + 1), strict=True)
    out = []
    for row, mirrored, down, right in picked:
        padded = np.pad(images[row][:, :: -1 if mirrored and (mirrors is None or mirrors[row]) else 1], reach)
        out.append(padded[down : down + size, right : right + size])
    return to_tensor(np.stack(out))


def halvings(size: int) -> int:
    """How often `size` pixels halve down to 4. Raises UserError unless they do."""
    levels = (size // 4).bit_length() - 1
    if size < 16 or size != 4 * 2**levels:
        raise UserError(
            "the baselines take images of 16, 32, 64, 128, 256, ... pixels; train.image_px, or data.image_size where "
            f"that is less, is {size}"
        )
    return levels


def averaged(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """The exponential moving average of a model's weights (EMA), and its other buffers as they are."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)


class Operations:
    """Floating-point operations of a training over all processes: torch counts the first step of each kind."""

    def __init__(self):
        self.total, self.of_kind = 0, {}

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"total": self.total, "of_kind": dict(self.of_kind)}

    def load_state_dict(self, state: dict) -> None:
        """Go on counting from a checkpoint."""
        self.total, self.of_kind = state["total"], dict(state["of_kind"])

    def run(self, step: Callable, kind: str = ""):
        """What `step` returns; kind: steps of one kind cost the same."""
        if kind in self.of_kind:
            result = step()
        else:
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                result = step()
            self.of_kind[kind] = round(distributed.total(counter.get_total_flops()))
        self.total += self.of_kind[kind]
        return result


def run(
    parts: dict,
    update: Callable[[int, torch.Generator], dict[str, float]],
    *,
    name: str,
    seed: int,
    steps: int,
    points: int,
    checkpoint: Path,
    tick: Tick,
    snapshot: Callable[[int], None],
    kinds: int = 1,
) -> tuple[list[dict[str, float]], int]:
    """Train a baseline: call `update(step, generator)` for every step, which returns its losses by name.

    parts: whatever has a state_dict (networks, optimisers, averages), by name. All that is random about a step comes
    from its generator, so a run that was killed goes on from `checkpoint` to the same result. At `points` + 1 even
    distances, the start and the end among them, `snapshot(0 .. points)` is called and then the checkpoint written.
    Returns the losses of every step, and the floating-point operations of the whole, of which every one of `kinds`
    steps is counted by torch once. Of several processes, `update` returns this one's share of the losses. Raises
    UserError naming section baselines.`name` when a loss stops being finite.
    """
    ends = [round(steps * k / points) for k in range(points + 1)]
    rated = next(part for part in parts.values() if isinstance(part, torch.optim.Optimizer))  # the generator's
    first, history, operations = 0, [], Operations()
    if state := load_checkpoint(checkpoint):
        for key, part in parts.items():
            part.load_state_dict(state["parts"][key])
        first, history = state["step"], state["history"]
        operations.load_state_dict(state["operations"])
    else:
        for k in [k for k, end in enumerate(ends) if end == 0]:
            snapshot(k)
    for step in range(first, steps):
        generator = streams.generator(seed, name, "step", step)
        losses = operations.run(partial(update, step, generator), str(step % kinds))
        losses = {key: distributed.total(value) for key, value in losses.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            named = ", ".join(f"{key} {value}" for key, value in losses.items())
            raise UserError(f"training {name} diverged at step {step} ({named}); lower baselines.{name}.learning_rate")
        history.append(losses)
        tick(step, next(iter(losses.values())), rated.param_groups[0]["lr"])
        for k in [k for k, end in enumerate(ends) if k and end == step + 1]:  # several, of more points than steps
            snapshot(k)
        if step + 1 in ends or (step + 1) % 500 == 0:
            state = {key: part.state_dict() for key, part in parts.items()}
            save_checkpoint(
                checkpoint,
                {"parts": state, "step": step + 1, "history": history, "operations": operations.state_dict()},
            )
    return history, operations.total
