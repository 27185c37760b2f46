"""What `make shapes-table` trains of this paper: the network, without context, part by part."""

# What, options, how many times the default number of steps: the default, the same without context,
# then the others.
ROWS = [
    ("UN-EPT", (), 1),
    ("no context", ("context=False",), 1),
    ("one level", ("levels=1",), 1),
    ("one level, 16 points", ("levels=1", "points=16"), 1),
    ("one level, 64 points", ("levels=1", "points=64"), 1),
    ("16 points", ("points=16",), 1),
    ("no spatial branch", ("spatial=False",), 1),
    ("64 points", ("points=64",), 1),
]
