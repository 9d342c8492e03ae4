"""Several processes that train and draw as one: a group of torch.distributed, as `accelerate launch` starts it.

Each process holds the whole model. What is random about a batch is drawn for the whole of it, the same in each; then
each takes its rows. A loss is the share's part of the mean over the whole batch, and gradients are summed: a step is
that of one process, but for the order of sums. Without a group there is one process, and nothing here changes a bit.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from synthmri.errors import UserError


def join(device: str, threads: int) -> None:
    """Join the group that this process was started in, if it was; "cuda" is then a GPU of its own.

    Raises UserError for engines that split a model, and for a device that all processes would share.
    """
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise UserError(
                f"accelerate's configuration asks for {engine}, which splits a model; here each process holds all of "
                "it: run `accelerate config` and choose multi-GPU or multi-CPU"
            )
    from accelerate import PartialState

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or accelerate takes a number of its own, and says so
    PartialState(cpu=device == "cpu")
    if count() > 1:
        # Its threads have to end before the interpreter does, or the process may end with "terminate called".
        atexit.register(dist.destroy_process_group)
    if count() > 1 and ":" in device:
        raise UserError(f"runtime.device = {device} is one GPU, of {count()} processes; set it to cuda: one GPU each")


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


@dataclass(frozen=True)
class Share:
    """The rows of a batch of `whole` that are this process's, and what they weigh in a mean over the batch."""

    whole: int
    rows: slice
    weight: float


def share(whole: int) -> Share:
    """Shares are runs of rows that differ in length by one at most.

    Where there are fewer rows than processes, some get the first row at weight 0: a network wants something to do.
    """
    first, end = whole * rank() // count(), whole * (rank() + 1) // count()
    return Share(whole, slice(first, end), (end - first) / whole) if end > first else Share(whole, slice(0, 1), 0.0)


def total(value: float) -> float:
    """Sum over the processes."""
    if count() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    numbers = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(numbers)
    return numbers.item()


def summed(x: torch.Tensor) -> torch.Tensor:
    """Sum over the processes; gradients pass: that of each process is the sum of what all of them ask for."""
    return x if count() == 1 else _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


def mean(x: torch.Tensor, dim: tuple[int, ...] | None = None) -> torch.Tensor:
    """Mean over `dim` of the batch of which each process has some rows; gradients pass. So with `std`."""
    return x.mean(dim) if count() == 1 else _moments(x, dim)[0]


def std(x: torch.Tensor, dim: tuple[int, ...] | None = None) -> torch.Tensor:
    """Standard deviation likewise, with the divisor n - 1."""
    if count() == 1:
        return x.std(dim)
    _, variance, n = _moments(x, dim)
    return (variance * n / (n - 1)).sqrt()


def _moments(x: torch.Tensor, dim: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and variance (divisor n) over `dim` of the whole batch, and n."""
    sums = summed(x.sum(dim, keepdim=True))
    n = total(x.numel()) / sums.numel()
    variance = summed((x - sums / n).square().sum(dim, keepdim=True)) / n
    return (sums / n).sum(dim), variance.sum(dim), n


def sum_gradients(weights: Iterable[torch.Tensor]) -> None:
    """Put the sum over the processes in the place of each gradient, the same bits in every process."""
    if count() == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message is faster than hundreds
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def map_items(make: Callable, items: Sequence, progress: Callable = lambda items, total: items) -> list:
    """[make(item) for item in items], each made by one process and then known to all.

    What `make` gives back is pickled, so tensors should be on the CPU. progress(items, total) passes them on.
    """
    mine = items[rank() :: count()]
    made = [make(item) for item in progress(mine, len(mine))]
    if count() == 1:
        return made
    parts: list = [None] * count()
    dist.all_gather_object(parts, made)
    return [parts[i % count()][i // count()] for i in range(len(items))]


def ahead(make: Callable[[int], object]) -> Callable[[int], object]:
    """`make` for numbers that never fall, where making costs as much as using: each process makes one of the next few.

    These are kept, so that asking again costs nothing.
    """
    made: dict[int, object] = {}

    def get(i: int):
        if i not in made:
            following = range(i, i + count())
            made.clear()
            made.update(zip(following, map_items(make, following), strict=True))
        return made[i]

    return get


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the statistics of the whole batch, over all processes and on every device.

    (torch's SyncBatchNorm is for GPUs alone.) Every row counts, so no share may be empty: see `check`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if count() == 1 or not self.training:
            return super().forward(x)
        centre, variance, n = _moments(x.float(), (0, 2, 3))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(centre, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((x - centre[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def check(batch: int, name: str) -> None:
    """Raise UserError where a batch has fewer rows than there are processes."""
    if batch < count():
        raise UserError(f"{name} = {batch} is less than {count()} processes, which would have nothing to do; raise it")
