"""What `make shapes-table` trains of this paper: the network, without context, part by part."""

# What, options, how many times the default number of steps: the default, the same without context,
# then the others.
ROWS = [
    ("collect and distribute", (), 1),
    ("no context", ("context=False",), 1),
    ("collect", ("psa_type=collect",), 1),
    ("distribute", ("psa_type=distribute",), 1),
]
