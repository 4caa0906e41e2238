"""Compiles the Triton kernels for GPUs that need not be there, and reads what became of them.

    python tests/compiled_kernels.py            # compares with compiled_kernels.json
    python tests/compiled_kernels.py --write    # records what a change has made of them

The launches are those of `tiered_emb.device.launch`; in a kernel's place stands one that compiles
for a given architecture and does not run. Registers and spills are ptxas's own words, 128-bit
accesses are counted in the machine code.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from tiered_emb.device import kernels, launch
from tiered_emb.device.slots import SlotLayout, Slots

RECORD = Path(__file__).with_suffix(".json")
ARCHITECTURES = (80, 90, 100)
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SPILLED = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Compiled:
    """Stands for a kernel: a launch compiles it."""

    def __init__(self, kernel: Any, into: list[Any]) -> None:
        self.kernel, self.into = kernel, into

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def compile_only(*args: Any, **options: Any) -> None:
            self.into.append(self.kernel.warmup(*args, grid=grid, **options))

        return compile_only


def _launches() -> dict[str, Callable[[], None]]:
    """Launches whose kernels are watched, by name; the tensors hold nothing of interest."""
    integers = torch.zeros(64, dtype=torch.int32)
    longs = torch.zeros(64, dtype=torch.int64)
    occurrences = launch.Occurrences(integers, longs, integers, integers, integers)
    step = launch.StepNumbers(torch.zeros(6), integers, False)

    def rows(dim: int, dtype: torch.dtype, optimizer: int) -> tuple[Slots, torch.Tensor]:
        return Slots.zeros(SlotLayout(dim, dtype, optimizer), 64, "cpu"), torch.zeros(
            63, dim, dtype=dtype
        )

    def pool(dim: int, dtype: torch.dtype, mode: str) -> Callable[[], None]:
        slots, out = rows(dim, dtype, 3)
        return lambda: launch.pool(slots, integers, longs, mode, out)

    def update(dim: int, dtype: torch.dtype, optimizer: int) -> Callable[[], None]:
        slots, grad = rows(dim, dtype, optimizer)
        bags = launch.Gradients(grad)
        return lambda: launch.update(slots, integers, occurrences, "sum", bags, step)

    bags = launch.Gradients(torch.zeros(63, 128))
    slots, _ = rows(128, torch.float32, 3)
    staging = torch.zeros_like(slots.words)
    single, half = torch.float32, torch.bfloat16
    return {
        "fill, 128 float32": lambda: launch.copy_rows(staging, integers, slots.words, integers),
        "pool sum, 128 float32": pool(128, single, "sum"),
        "pool sum, 64 bfloat16": pool(64, half, "sum"),
        "pool mean, 32 float32": pool(32, single, "mean"),
        "sum of gradients, 128 float32": lambda: launch.sum_gradients(
            integers, occurrences, "sum", bags, torch.zeros(64, 128)
        ),
        "gradients of sample weights, 128 float32": lambda: launch.sample_weight_gradients(
            slots, integers, integers, bags.grad, torch.zeros(64)
        ),
        "update sgd, 128 float32": update(128, single, 1),
        "update adagrad, 128 float32": update(128, single, 2),
        "update rowwise, 128 float32": update(128, single, 3),
        "update adam, 128 float32": update(128, single, 4),
        "update rowwise, 64 bfloat16": update(64, half, 3),
    }


def _facts(compiled: Any, architecture: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(compiled.asm["ptx"])
        name = "ptxas-blackwell" if architecture >= 100 else "ptxas"
        target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])
        assert target is not None
        fusion = ["--fmad=false"]  # as Triton does where enable_fp_fusion is off
        told = subprocess.run(
            [BINARIES / name, "-v", *fusion, f"--gpu-name={target[1]}", ptx, "-o", cubin],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stderr
        code = subprocess.run(
            [BINARIES / "nvdisasm", cubin], capture_output=True, text=True, check=True, timeout=120
        ).stdout
    registers = re.search(r"Used (\d+) registers", told)
    spilled = SPILLED.search(told)
    assert registers is not None, told
    assert spilled is not None, told
    return {
        "registers": int(registers[1]),
        "spill_bytes": int(spilled[2]) + int(spilled[3]),
        "loads_128": len(re.findall(r"\bLDG\.E\.128", code)),
        "stores_128": len(re.findall(r"\bSTG\.E\.128", code)),
        "shared_bytes": int(compiled.metadata.shared),
    }


def compile_all() -> dict[str, dict[str, dict[str, int]]]:
    """By kernel, by architecture: registers, spills and accesses."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for architecture in ARCHITECTURES:
        triton.runtime.driver.set_active(_Driver(architecture))
        for name, start in _launches().items():
            into: list[Any] = []
            stand_ins = {
                key: _Compiled(getattr(kernels, key), into)
                for key in (
                    "copy_rows",
                    "pool",
                    "sample_weight_gradients",
                    "sum_gradients",
                    "update",
                )
            }
            launch.kernels = SimpleNamespace(**stand_ins)
            start()
            (compiled,) = into
            found.setdefault(name, {})[f"sm_{architecture}"] = _facts(compiled, architecture)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record what is found")
    args = parser.parse_args()
    found = compile_all()
    if args.write:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    recorded = json.loads(RECORD.read_text())
    for name in sorted(found.keys() | recorded.keys()):
        if found.get(name) != recorded.get(name):
            print(f"{name}: compiled {found.get(name)}, recorded {recorded.get(name)}")
    return 0 if found == recorded else 1


if __name__ == "__main__":
    sys.exit(main())
