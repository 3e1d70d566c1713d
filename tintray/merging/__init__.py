"""Every merging method that a user would compare with, as pure functions on one tensor.

declaration.py  what a method is, and the decorator that declares one
registry.py     which there are, built in and as plugins; recipes with checked parameters
linear, sparse, masks, balancing, spherical, statistical, spectral, interference
                the methods, one small module per family
apply.py        a recipe on a layer, or on task vectors in memory
tensor_files.py safetensors read and written a stretch at a time
streaming.py    whole checkpoints, tensor by tensor, within a bound on memory
"""

from tintray.merging.declaration import Layer, Method, Parameter, method
from tintray.merging.registry import Recipe, find_method, methods, recipe

__all__ = [
    "Layer",
    "Method",
    "Parameter",
    "Recipe",
    "find_method",
    "method",
    "methods",
    "recipe",
]
