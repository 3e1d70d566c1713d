"""Data as users have it: files, folders and hub names, read into examples and into labels.

Inputs and labels are read by different functions, and the one for inputs never opens a label: what
a fit sees of a pool cannot depend on its labels.
"""
