"""Workers as static partitions: one contiguous chunk of the ids each. Nothing else belongs here."""

from __future__ import annotations

import dagster as dg

from payout_pipeline.ids.chunks import partition_keys


def worker_partitions(workers: int) -> dg.StaticPartitionsDefinition:
    """``worker_1_of_4`` … ``worker_4_of_4``, zero-padded so that text order (in which Dagster submits) is number order."""
    return dg.StaticPartitionsDefinition(partition_keys(workers))
