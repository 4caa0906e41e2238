"""`tiered-emb bench`: throughput on this machine, beside the limits of the machine."""

SUMMARY = "benchmarks against the limits of this machine"
COMMANDS = {
    "all": "tiered_emb.bench.all_command",
    "limits": "tiered_emb.bench.limits_command",
    "lookup": "tiered_emb.bench.lookup_command",
    "dlrm": "tiered_emb.bench.dlrm_command",
    "ssd": "tiered_emb.bench.ssd_command",
    "cache": "tiered_emb.bench.cache_command",
    "wall": "tiered_emb.bench.wall_command",
    "report": "tiered_emb.bench.report_command",
}
EXAMPLE = "tiered-emb bench dlrm dlrm-kaggle --dram 10% --out report"
