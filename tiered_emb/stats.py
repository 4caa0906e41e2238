"""Counters of a set of tables, as `stats()` returns them."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tiered_emb.tiers import Size, format_bytes

if TYPE_CHECKING:
    from tiered_emb.engine import TableEngine
    from tiered_emb.tuner.advice import Advice


@dataclass(frozen=True)
class Stats:
    """Totals since construction; fields that say so describe the present.

    A *lookup* is one id of a batch (padding excluded); it is a *hit* if its row was in dram when
    the batch was planned. First touches of rows never written count as misses, but read nothing
    (`rows_filled_initial`).
    """

    steps: int
    lookups: int
    lookup_hits: int
    unique_rows: int
    missing_rows: int
    piggybacked_rows: int
    """Others that came with them: rows in the same blocks that announced batches will use."""
    plans_revoked: int
    rows_filled_from_ssd: int
    rows_filled_initial: int
    rows_spilled_dirty: int
    rows_spilled_clean: int
    hbm_rows_hit: int
    """Unique rows of batches that were on the device already."""
    hbm_rows_filled: int
    """Those that moved there from dram."""
    hbm_rows_spilled: int
    """Rows that were newer on the device and moved down."""
    hbm_rows_in_dram: int
    """Unique rows of batches that found no room on the device, and were used in dram."""
    hbm_slots: int
    hbm_rows: int
    """Rows on the device at present."""
    hbm_dirty_rows: int
    """Of those, rows that are newer than in dram."""
    pinned_bytes: int
    """Transfer buffers of the device at present; part of `dram_bytes`."""
    slots: int
    """Rows that the dram budget has room for, at present."""
    resident_rows: int
    """Rows in dram at present."""
    dirty_rows: int
    """Rows in dram that differ from ssd, at present."""
    total_rows: int
    total_row_bytes: int
    """All rows with their optimizer state, wherever they are."""
    dram_bytes: int
    """What the budget is charged at present, with every slot in use."""
    dram_target_bytes: int
    """The budget: of `te.Tiers`, or of the last `resize`; 0: as much as all rows take."""
    dram_resizing: bool
    """Whether the batches to come still bring the tables to that size."""
    index_bytes: int
    """Location words at present; part of `dram_bytes`."""
    lookahead_bytes: int
    """Ids of announced batches at present, as far as the lookahead knows them; likewise."""
    ssd_rows_read: int
    ssd_rows_from_write_buffer: int
    ssd_blocks_read: int
    ssd_read_bytes: int
    ssd_rows_written: int
    ssd_row_written_bytes: int
    """Bytes of the rows that were spilled."""
    ssd_written_bytes: int
    """Bytes written to segment files, the reclaimer's included."""
    ssd_checkpoint_written_bytes: int
    ssd_rows_reclaimed: int
    ssd_reclaim_read_bytes: int
    ssd_segments_reclaimed: int
    ssd_segments: int
    ssd_segments_pinned: int
    ssd_segments_damaged: int
    """Segments that the reclaimer could not read and leaves alone, at present."""
    ssd_used_bytes: int
    ssd_live_bytes: int
    """Copies of rows in segments that count, at present."""
    ssd_rows_bytes: int
    """What all rows that were ever written take, packed into blocks, at present."""
    ssd_io_engine: str
    """`io_uring` or `portable`; empty without an ssd tier."""
    ssd_read_latency_p50_us: float
    ssd_read_latency_p99_us: float
    ssd_read_queue_depth: float
    """Reads in flight, on average, as one that ends finds them."""
    ssd_write_latency_p50_us: float
    ssd_write_latency_p99_us: float
    prefetched_batches: int
    """Batches that were prefetched and then looked up."""
    prefetched_batches_ready: int
    """Those of them whose rows were all in dram by then."""
    prefetched_batches_missed: int
    """Those that were not even planned by then: dram was short, or something was wrong."""
    prefetch_stall_ns: int
    """Lookups waited for rows that were being fetched."""
    plan_ns: int
    """Planning while the model waited, as `move_ns`."""
    plan_ahead_ns: int
    """Planning of batches that were prefetched."""
    upkeep_ns: int
    """Looking after the store before a batch, likewise: giving space back, above all."""
    move_ns: int
    """Fetching rows while the model waited."""
    forward_ns: int
    backward_ns: int

    @property
    def hit_ratio(self) -> float:
        """Lookups served from dram, of all lookups; 1.0 before the first."""
        return self.lookup_hits / self.lookups if self.lookups else 1.0

    @property
    def rows_wanted_per_block(self) -> float:
        """Rows that one block read brought, on average; it multiplies the drive's IOPS."""
        from_disk = self.ssd_rows_read - self.ssd_rows_from_write_buffer
        return from_disk / self.ssd_blocks_read if self.ssd_blocks_read else 0.0

    @property
    def write_amplification(self) -> float:
        """Bytes written to segments for each byte of spilled rows."""
        return (
            self.ssd_written_bytes / self.ssd_row_written_bytes
            if self.ssd_row_written_bytes
            else 0.0
        )

    @property
    def space_amplification(self) -> float:
        """Bytes of segments in use for each byte of rows ever written, at present.

        What `SSD(space_bound=...)` limits.
        """
        return self.ssd_used_bytes / self.ssd_rows_bytes if self.ssd_rows_bytes else 0.0

    def recommend(
        self,
        *,
        dram_max: Size | None = None,
        hbm_max: Size | None = None,
        layers_ms: float | None = None,
        machine: Any = None,
    ) -> Advice:
        """Tier sizes for these tables, from what has been looked up lately; docs/TUNING.md.

        Caches of all sizes are simulated on the sample that the engine keeps: a second or so. Of
        batches it watches a stretch, rests, and watches again; until then it stays as it is. Print
        what comes back, or `bag.resize(dram=advice.dram_bytes)`.

        Args:
            dram_max: most bytes of dram, as int or ``"8GiB"``; None: the present budget.
            hbm_max: likewise of a device; None: as much as there is now.
            layers_ms: what a step takes besides lookups and updates; None: the time between the
                last lookups, less what the engine took.
            machine: a `bench.predict.Host`; None: this one, as ``tiered-emb bench limits --engine``
                has saved it.

        Raises:
            ValueError: too few batches have been looked up, or nothing is saved of this machine.
        """
        from tiered_emb.tuner.online import recommend  # takes a second

        engine = getattr(self, "_engine", lambda: None)()
        if engine is None:
            raise ValueError("recommend(): these counters are not of tables in use")
        return recommend(
            engine, dram_max=dram_max, hbm_max=hbm_max, layers_ms=layers_ms, machine=machine
        )

    def belong_to(self, engine: TableEngine) -> None:
        """For `recommend`. Not a field: no part of the dict and of comparisons."""
        object.__setattr__(self, "_engine", weakref.ref(engine))

    def as_dict(self) -> dict[str, Any]:
        """Counters and ratios, for JSON."""
        ratios = {
            name: getattr(self, name)
            for name in (
                "hit_ratio",
                "rows_wanted_per_block",
                "write_amplification",
                "space_amplification",
            )
        }
        return {**asdict(self), **ratios}

    def __str__(self) -> str:
        target = (
            f" on the way to {format_bytes(self.dram_target_bytes)}" if self.dram_resizing else ""
        )
        hbm = f"hbm {self.hbm_rows:,} of {self.hbm_slots:,} slots; " if self.hbm_slots else ""
        return (
            f"{self.lookups:,} lookups in {self.steps:,} steps, {self.hit_ratio:.1%} hits; "
            f"{hbm}dram {self.resident_rows:,} of {self.slots:,} slots "
            f"({format_bytes(self.dram_bytes)}{target}); "
            f"ssd read {format_bytes(self.ssd_read_bytes)}, "
            f"written {format_bytes(self.ssd_written_bytes)}"
        )
