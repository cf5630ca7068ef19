"""Checkpoints of training runs, written by one process or by several ranks.

`folder` manages the set of checkpoints, `whole` and `sharded` lay out the tensors, and `opening` reads both
layouts.
"""
