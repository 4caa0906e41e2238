"""README's tables of `tiered-emb bench all`, from its checked-in JSON."""

from __future__ import annotations

from typing import Any

IN_DRAM, MAPPED = "tiered, all in dram", "nn.EmbeddingBag, mmap"
PEERS = ("nn.EmbeddingBag", "FBGEMM (CPU)", MAPPED)


def dlrm_table(report: dict[str, Any]) -> str:
    """Markdown: throughput of each model and size of dram, beside others, and eta."""
    header = (
        *("model", "rows in dram", "samples/s", "of all in dram", "beside `nn.EmbeddingBag`"),
        *("FBGEMM", "`nn.EmbeddingBag`, mapped", "eta"),
        "= policy x amplification x bandwidth x overlap",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for run in report["runs"]:
        contenders, e = run["contenders"], run["efficiency"]
        ours = contenders["tiered"]["samples_per_s"]

        def beside(name: str, contenders: Any = contenders, ours: float = ours) -> str:
            if name not in contenders:
                return "-"
            return f"{ours / contenders[name]['samples_per_s']:.2f}"

        factors = (e["policy"], e["amplification"], e["bandwidth"], e["overlap"])
        cells = [
            run["workload"]["name"],
            f"{run['tiers']['dram_share']:.0%}",
            f"{ours:,.0f}",
            beside(IN_DRAM),
            *(beside(name) for name in PEERS),
            f"{e['eta']:.2f}",
            " x ".join(f"{factor:.2f}" for factor in factors),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
