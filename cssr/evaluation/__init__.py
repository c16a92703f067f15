"""Evaluation: the measures of each image, their aggregates and intervals, results and sample pictures."""
