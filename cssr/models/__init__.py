"""Networks: the two zoos and the joint model."""
