"""What `make shapes-table` trains of this paper: the network, without context, part by part."""

FPA_ONLY, GAU_ONLY = ("gate=none",), ("attention=none", "global_pool=False")
# What, options, how many times the default number of steps: the default, the same without context,
# then the others.
ROWS = [
    ("PAN", (), 1),
    ("no context", ("context=False",), 1),
    ("SE", ("attention=se", "global_pool=False", *FPA_ONLY), 1),
    ("C333, max", ("kernels=3,3,3", "pool=max", "global_pool=False", *FPA_ONLY), 1),
    ("C333, average", ("kernels=3,3,3", "global_pool=False", *FPA_ONLY), 1),
    ("C357, average", ("global_pool=False", *FPA_ONLY), 1),
    ("FPA", FPA_ONLY, 1),
    ("FPA of the note", ("variant=note", *FPA_ONLY), 1),
    ("GAU 1x1", (*GAU_ONLY, "low_kernel=1"), 1),
    ("GAU 3x3", GAU_ONLY, 1),
    ("PAN, spatial gate", ("gate=spatial",), 1),
    ("PAN of the note", ("variant=note",), 1),
]
