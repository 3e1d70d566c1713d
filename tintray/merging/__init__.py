"""Every merging method that a user would compare with, as pure functions on one tensor.

declaration.py  what a method is, and the decorator that declares one
registry.py     which there are, built in and as plugins; recipes with checked parameters
apply.py        a recipe on a layer, or on task vectors in memory
algorithms/     the methods, a module for each family
mergekit/       mergekit's methods, what its recipes say, and the plan of every tensor
files/          whole checkpoints on disk, merged tensor by tensor within a bound on memory
statistics.py   what some methods measure about an expert beforehand; surgery.py learns on features
"""

from tintray.merging.declaration import Layer, Method, Parameter, method
from tintray.merging.registry import Recipe, find_method, methods, recipe

__all__ = ["Layer", "Method", "Parameter", "Recipe", "find_method", "method", "methods", "recipe"]
