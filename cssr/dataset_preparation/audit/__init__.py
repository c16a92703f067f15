"""Examine a dataset before it is sharded: damage, masks, copies and overlaps of its images."""
