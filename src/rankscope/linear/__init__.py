"""The derivative of a model at a point: how tangents are pushed through it and cotangents pulled back."""
