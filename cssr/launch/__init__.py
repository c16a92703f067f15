"""Many evaluations and trainings at a time, and what a launch file would run: jobs, grids, dry runs, memory."""
