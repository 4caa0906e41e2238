"""Benchmarks against the limits of the machine: what `tiered-emb bench` runs."""
