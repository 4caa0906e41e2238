"""Tables of the hbm tier for the README and docs/ARCHITECTURE.md."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]

# Of the makers' data sheets, for what is marked as a projection: bytes a second of memory, and of
# the link to the host in one direction (PCIe 4.0 and 5.0, sixteen lanes, nine tenths of them).
DEVICES = {
    "A100 80 GB": ("sm_80", 2.04e12, 28e9),
    "H100 SXM": ("sm_90", 3.35e12, 57e9),
    "B200": ("sm_100", 8.0e12, 57e9),
}
# Of one multiprocessor, all three architectures but for shared memory.
REGISTERS, REGISTER_UNIT, WARPS, BLOCKS = 65536, 256, 64, 32
SHARED_BYTES = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
SHARED_BYTES_RESERVED = 1 << 10  # of a block
# The step that is projected: bags, ids a bag, floats a row, and of all ids those that are the first
# of their row in the batch, and those whose rows have to come up.
BAGS, POOLING, DIM, UNIQUE, MISSING = 65_536, 20, 128, 0.4, 0.05


def device_table(report: Report) -> str:
    """Markdown: the kernels of the hbm tier on a GPU, beside torch's."""
    lines = [
        "| dim | ids | lookup | of copy | torch's | update | of copy | torch's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in report["parts"]:
        cells = [str(part["dim"]), "Zipf 1.05" if part["stream"] == "zipf" else "uniform"]
        for ours, peer in (
            ("forward", "torch_embedding_bag_ms"),
            ("update", "torch_operations_ms"),
        ):
            cells.append(f"{part[f'{ours}_ms']['p50']:.3f} ms")
            cells.append(f"{part[f'{ours}_of_copy']:.2f}")
            cells.append(f"{part[peer]['p50']:.3f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gpu_table(tables: Report, *models: Report) -> str:
    """Steps of tables with an hbm tier on a GPU, beside torch's there."""
    lines = [
        "| steps of | all in hbm | hbm 10%, rest in dram | `nn.EmbeddingBag` there | layers |",
        "|---|---|---|---|---|",
    ]
    for part in tables["parts"]:
        ms = {name: quartiles[1] for name, quartiles in part["step_ms"].items()}
        lines.append(
            f"| {part['rows']:,} rows of {part['dim']}, {part['bags']:,} bags of 20, "
            f"{part['stream']} | {ms['all in hbm']:.1f} ms | {ms['hbm 10%']:.1f} ms "
            f"| {ms['torch']:.1f} ms | |"
        )
    for report in models:
        (run,) = report["runs"]
        ms = {name: c["round_ms_p50"] for name, c in run["contenders"].items()}
        load = run["workload"]
        lines.append(
            f"| {load['name']}, batch {load['batch_size']}, {load['rows']:,} rows of {load['dim']} "
            f"| | {ms['tiered']:.1f} ms | {ms['nn.EmbeddingBag']:.1f} ms "
            f"| {ms['layers alone']:.1f} ms |"
        )
    return "\n".join(lines)


def emulated_table(report: Report) -> str:
    """Markdown: a DLRM step with an emulated device, beside the same without."""
    options = report["options"]
    hbm, dram = f"{options['hbm']:.0%}", f"{options['dram']:.0%}"
    titles = {
        "ssd": f"hbm {hbm}, dram {dram}, the rest on ssd, prefetched",
        "in line": "the same, not prefetched",
        "dram": f"hbm {hbm}, all rows in dram",
        "all": "all rows in hbm and in dram",
    }
    lines = [
        "| tiers | without, ms | with, ms | ratio (quartiles) | rows a step | up | down |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pair in report["pairs"].items():
        spread = f"{pair['ratio_p25']:.2f}-{pair['ratio_p75']:.2f}"
        lines.append(
            f"| {titles[name]} | {pair['two']['step_ms']:.1f} | {pair['three']['step_ms']:.1f} "
            f"| {pair['ratio']:.2f} ({spread}) | {pair['rows']:,.0f} | {pair['rows_up']:,.0f} "
            f"| {pair['rows_down']:,.0f} |"
        )
    return "\n".join(lines)


def resident_warps(kernel: str, facts: dict[str, int], architecture: str) -> int:
    """Warps of a kernel that one multiprocessor holds at once."""
    warps = 1 if kernel.startswith("sum of gradients") else 4
    registers = -(-facts["registers"] * 32 // REGISTER_UNIT) * REGISTER_UNIT * warps
    shared = facts["shared_bytes"] + SHARED_BYTES_RESERVED
    blocks = min(REGISTERS // registers, SHARED_BYTES[architecture] // shared, BLOCKS)
    return min(WARPS, blocks * warps)


def bytes_per_lookup(kernel: str) -> str:
    """What a kernel reads and writes, from its name: see `tests/compiled_kernels.py`."""
    what, _, numbers = kernel.partition(", ")
    dim, dtype = numbers.split()
    width = int(dim) * (4 if dtype == "float32" else 2)
    if what == "fill":
        return f"{2 * (width + 16)} a row"
    if what.startswith("pool"):
        return f"{width + 4}, and {width + 8} a bag"
    if what == "sum of gradients":
        return f"{width + 4}, and {width} a row"
    if what.startswith("gradients of sample weights"):
        return f"{2 * width + 12}"
    state = {"sgd": 0, "rowwise": 4, "adagrad": int(dim) * 4, "adam": int(dim) * 8}
    return f"{width + 4}, and {2 * (width + state[what.split()[1]]) + 16} a row"


def kernel_table(compiled: dict[str, dict[str, dict[str, int]]]) -> str:
    """Markdown: what the compiled kernels need and move."""
    architectures = ("sm_80", "sm_90", "sm_100")
    lines = [
        "| kernel | registers, " + ", ".join(architectures) + " | warps of 64 | bytes a lookup |",
        "|---|---|---|---|",
    ]
    for kernel, of in compiled.items():
        registers = ", ".join(str(of[a]["registers"]) for a in architectures)
        warps = ", ".join(str(resident_warps(kernel, of[a], a)) for a in architectures)
        lines.append(f"| {kernel} | {registers} | {warps} | {bytes_per_lookup(kernel)} |")
    return "\n".join(lines)


def projection_table() -> str:
    """Markdown: the least a step can take on devices of today, by their data sheets."""
    lookups = BAGS * POOLING
    forward = lookups * (DIM * 4 + 4) + BAGS * (DIM * 4 + 8)
    update = lookups * (DIM * 4 + 4) + lookups * UNIQUE * (2 * (DIM * 4 + 4) + 16)
    moved = lookups * MISSING * (DIM * 4 + 16)
    lines = [
        "| device | lookup | update | rows up, and as many down | the step, at least |",
        "|---|---|---|---|---|",
    ]
    for name, (_, memory, link) in DEVICES.items():
        times = (forward / memory, update / memory, moved / link)
        least = max(times[0] + times[1], times[2])
        cells = [f"{t * 1e3:.2f} ms" for t in (*times, least)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
