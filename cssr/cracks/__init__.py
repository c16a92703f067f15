"""Cracks of masks: connected components, their skeletons, and each crack's length, width and direction."""
