"""Networks: both registries, and the joint model."""
