"""Shards to batches: which sample comes when, reading, decoding, cropping, and the two streams of data."""
