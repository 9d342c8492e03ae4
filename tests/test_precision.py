"""Which number format is taken on which hardware, and what is said of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages import _cli
from synthmri import params
from synthmri.errors import UserError
from synthmri.training import precision


def hardware(monkeypatch, flags: dict, onednn: bool = True, built: bool = True) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: built)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)


def gpu(monkeypatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    "flags, onednn, built, expected",
    [
        ({"avx2": True, "avx512_bf16": True}, True, True, "bf16"),
        ({"avx2": True, "amx_bf16": True}, True, True, "bf16"),
        ({"neon": True, "bf16": True}, True, True, "bf16"),
        ({"avx2": True}, False, True, "fp32"),
        ({"avx2": True, "avx512_f": True}, True, True, "fp32"),  # oneDNN takes bf16 there, and emulates it
        ({"avx2": True, "avx_ne_convert": True}, True, True, "fp32"),  # conversions alone
        ({"avx2": True, "avx512_bf16": True}, False, True, "fp32"),  # ONEDNN_MAX_CPU_ISA=AVX2
        ({"neon": True, "bf16": True}, True, False, "fp32"),  # a torch without oneDNN
    ],
)
def test_a_processor_computes_in_bf16_where_it_is_native(monkeypatch, flags, onednn, built, expected):
    hardware(monkeypatch, flags, onednn, built)
    found, why = precision.choose("auto", "cpu")
    assert found == expected
    assert ("natively" if expected == "bf16" else "only emulates") in why


@pytest.mark.parametrize(
    "wanted, capability, scaler, expected",
    [
        ("auto", (9, 0), False, "bf16"),
        ("auto", (8, 0), True, "bf16"),
        ("auto", (7, 5), True, "fp16"),
        ("auto", (7, 5), False, "fp32"),
        ("bf16", (7, 5), True, "bf16"),
        ("fp16", (9, 0), True, "fp16"),
        ("fp16", (9, 0), False, "fp32"),
        ("fp32", (9, 0), True, "fp32"),
    ],
)
def test_a_gpu_by_its_compute_capability(monkeypatch, wanted, capability, scaler, expected):
    gpu(monkeypatch, capability)
    assert precision.choose(wanted, "cuda:0", scaler=scaler)[0] == expected


def test_what_is_asked_for_is_taken(monkeypatch):
    hardware(monkeypatch, {"avx2": True}, onednn=False)
    assert precision.choose("fp32", "cpu")[0] == "fp32"
    found, why = precision.choose("bf16", "cpu")
    assert found == "bf16" and "only emulates" in why


def test_half_precision_of_a_gpu_is_refused_on_a_processor():
    with pytest.raises(UserError, match="runtime.precision = fp16 needs a GPU; set it to auto"):
        precision.choose("fp16", "cpu")


def test_a_stage_says_what_it_takes_and_warns_of_emulation(monkeypatch, capsys):
    hardware(monkeypatch, {"avx2": True}, onednn=False)
    assert _cli.precision(params.Runtime()) == "fp32"
    said = capsys.readouterr().err
    assert said.startswith("precision fp32: this processor only emulates bf16") and "warning" not in said
    assert _cli.precision(params.Runtime(precision="bf16")) == "bf16"
    said = capsys.readouterr().err
    factor = re.search(r"warning: emulated bf16 takes (\d+\.\d) times as long as float32", said)
    assert float(factor[1]) > 0 and "set runtime.precision to auto" in said


def test_measuring_what_emulation_costs_moves_no_random_number(monkeypatch, capsys):
    hardware(monkeypatch, {"avx2": True}, onednn=False)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert _cli.precision(params.Runtime(precision="bf16")) == "bf16"
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_is_warned_of_where_it_is_native(monkeypatch, capsys):
    hardware(monkeypatch, {"avx512_bf16": True})
    _cli.precision(params.Runtime(precision="bf16"))
    assert "warning" not in capsys.readouterr().err


def test_oneDNN_forbidden_to_use_it_is_asked(monkeypatch):
    """On this machine, whatever it is: with AVX2 forced, nothing computes in bf16 natively."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    code = "from synthmri.training import precision; print(precision.choose('auto', 'cpu')[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    flags = torch.cpu.get_capabilities()
    assert done.stdout.strip() == ("bf16" if flags.get("bf16") else "fp32")  # Arm has no such switch


def test_autocast_is_off_in_float32():
    x = torch.ones(2, 2)
    for name, dtype in precision.DTYPES.items():
        if name != "fp16":
            with precision.autocast("cpu", name):
                assert (x @ x).dtype == dtype


def test_one_knob_for_all():
    """No section has a precision of its own."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert len(re.findall(r"^ *precision:", text, re.M)) == 1 and "bf16:" not in text
