"""Diffusion-synthetic segmentation: from class names to a scored segmenter, every station in the open."""
__version__ = "0.1.0"
