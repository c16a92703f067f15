"""Helpers that know nothing of images of cracks: files, pictures, threads, processes, command lines."""
