"""Image sets that need no download: made from formulas, from a seed, as fast as a network consumes them."""

from rankscope.datasets.fractals import FractalBatches, FractalSpec, FractalTestSet, fractal_images

__all__ = ["FractalBatches", "FractalSpec", "FractalTestSet", "fractal_images"]
