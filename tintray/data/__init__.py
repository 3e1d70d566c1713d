"""Data as users have it: files, folders and hub names, read into examples and into labels.

Inputs and labels are read by different functions, and the one for inputs never opens a label: what
a fit sees of an adaptation pool cannot depend on its labels.
"""

from tintray.data.labels import Answers, check_class_names, read_labels
from tintray.data.order import DataOrder
from tintray.data.reading import Examples, read_examples

__all__ = ["Answers", "DataOrder", "Examples", "check_class_names", "read_examples", "read_labels"]
