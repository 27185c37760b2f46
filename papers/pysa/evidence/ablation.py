"""What `make shapes-table` trains of this paper: the network, without context, part by part."""

# What, options, how many times the default number of steps: the default, the same without context,
# then the others.
ROWS = [
    ("Series", (), 1),
    ("no context", ("context=False",), 1),
    ("no context, five times as long", ("context=False",), 5),
    ("Parallel", ("variant=parallel",), 1),
]
