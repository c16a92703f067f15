"""Settings of a run, what they may name, and how they change with the samples seen."""
