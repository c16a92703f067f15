"""A survey: the cracks of many photographs as one table, one map, and classes of severity."""
