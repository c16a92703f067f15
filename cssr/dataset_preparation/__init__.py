"""Datasets on disk to shards: what belongs together, what is crack, splits, tiles, writing, checks and benchmarks."""
