"""What several tests need."""


def contents(folder):
    """All files under a folder, with their bytes; folders are there with False."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def close(a, b, tolerance=1e-5):
    """Of one shape, and the largest difference is small beside 1 or the largest value of b."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (a - b).abs().max()
