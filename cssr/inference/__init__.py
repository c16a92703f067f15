"""Prediction of photographs of any size: sources, readers, tiles, writers, and what is done already."""
