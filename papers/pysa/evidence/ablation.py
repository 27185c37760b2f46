"""What `make shapes-table` trains of this paper: the network, without context, part by part."""

# What, options, how many times the default number of steps: the default, the same without context,
# then the others.
ROWS = [
    ("Series", (), 1),
    ("no context", ("context=False",), 1),
    ("no context, five times as long", ("context=False",), 5),
    ("Parallel", ("variant=parallel",), 1),
    ("one cell per region (pyramid pooling)", ("cells=1",), 1),
    ("R of 1 only", ("regions=1,",), 1),
    ("R of 2, 4, 8", ("regions=2,4,8",), 1),
    ("R of 8, 4, 2, 1", ("regions=8,4,2,1",), 1),
]
