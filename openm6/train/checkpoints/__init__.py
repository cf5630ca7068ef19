"""Checkpoints of training runs, written by one process or by several ranks.

`folder` keeps the set of checkpoints whole, `whole` and `sharded` lay out the tensors, `opening` reads either.
"""
