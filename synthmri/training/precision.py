"""The number format that networks compute in: what `runtime.precision` asks for, and what the hardware does natively.

Half the bits are half the memory traffic, and on hardware made for them a fraction of the time. Where bfloat16 is only
emulated it takes 10 to 25 times as long as float32, so the hardware is asked before anything is trained.
"""

import time
from typing import Literal

import torch

from synthmri.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# torch's names for arithmetic in bfloat16: AVX512-BF16 and AMX of x86-64, and Arm's. Conversions alone are none.
_CPU_ARITHMETIC = ("avx512_bf16", "amx_bf16", "bf16")


def native_bf16(device: str) -> bool:
    """Whether this machine's hardware, and the library that drives it, computes in bfloat16 itself.

    device: "cpu", or "cuda" with or without a number. On a CPU the instructions must be there (torch asks the
    processor) and oneDNN must use them: ONEDNN_MAX_CPU_ISA=AVX2, for one, forbids it to. On CUDA it is so from compute
    capability 8.0 (Ampere) on.
    """
    if device != "cpu":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not torch.backends.mkldnn.is_available():
        return False
    flags = torch.cpu.get_capabilities()
    return any(flags.get(name, False) for name in _CPU_ARITHMETIC) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose(wanted: str, device: str, *, scaler: bool = False) -> tuple[Precision, str]:
    """The format to compute in, and why, in words for the first line of a stage.

    wanted: runtime.precision (auto, bf16, fp32 or fp16). scaler: whether a loss scaler is in the loop, without which
    gradients and activations of fp16 under- and overflow: float32 then takes its place.
    Raises UserError for fp16 on a CPU.
    """
    where = "this GPU" if device != "cpu" else "this processor"
    if wanted == "fp32":
        return "fp32", "as runtime.precision says"
    if wanted == "fp16":
        if device == "cpu":
            raise UserError("runtime.precision = fp16 needs a GPU; set it to auto, or to fp32")
        return (
            ("fp16", "as runtime.precision says") if scaler else ("fp32", "fp16 needs a loss scaler, and here is none")
        )
    native = native_bf16(device)
    if wanted == "bf16":
        if native:
            return "bf16", f"as runtime.precision says; {where} computes it natively"
        return "bf16", f"as runtime.precision says, although {where} only emulates it"
    if native:
        return "bf16", f"{where} computes it natively"
    if device != "cpu" and scaler:
        return "fp16", f"{where} only emulates bf16"
    return "fp32", f"{where} only emulates bf16" + ("" if device == "cpu" else ", and fp16 needs a loss scaler")


def autocast(device: str | torch.device, precision: Precision) -> torch.autocast:
    """torch's autocast in that format; in float32 it changes nothing."""
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision], enabled=precision != "fp32")


def slowdown(precision: Precision, device: str, *, rounds: int = 3) -> float:
    """How many times as long as in float32 a convolution takes, forward and backward: what emulation costs here.

    The convolution is one of an autoencoder, 3 x 3 of 32 channels on (4, 32, 64, 64); the fastest of `rounds` counts.
    """
    convolution = torch.nn.Conv2d(32, 32, 3, padding=1).to(device)
    x = torch.ones(4, 32, 64, 64, device=device, requires_grad=True)

    def seconds(each: Precision) -> float:
        taken = []
        for _ in range(rounds + 1):  # the first sets kernels up
            begun = time.perf_counter()
            with autocast(device, each):
                y = convolution(x)
            y.float().mean().backward()
            if device != "cpu":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begun)
        return min(taken[1:])

    return seconds(precision) / seconds("fp32")
