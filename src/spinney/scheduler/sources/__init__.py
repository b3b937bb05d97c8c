"""From the objects that describe gangs to one kind of value: the specification of a tree.

Every source is a pure function. A PodGang lists its pods; for all other sources a pod says which
gang and which leaf of its tree it belongs to.
"""
