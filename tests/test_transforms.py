"""Augmentation: what each step does to pixels that can be worked out by hand, and what it never
does."""

import colorsys

import numpy as np
import pytest
import torch

from datasets import transforms


def rng(seed=0):
    return np.random.default_rng(seed)


class Always:
    """A generator whose coins always fall on heads and whose numbers are given."""

    def __init__(self, uniform=0.0, integer=0):
        self.value, self.integer = uniform, integer

    def random(self):
        return 0.0

    def uniform(self, low, high):
        return self.value

    def integers(self, low, high=None):
        return self.integer


def scene(height=40, width=60):
    generator = rng()
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, generator.integers(0, 5, (height, width)).astype(np.uint8)


def smooth(height=40, width=60):
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * y + x, 2 * x + 10, 3 * y + 20], axis=-1).clip(0, 255).astype(np.uint8)


FAMILIES = {
    "semseg": dict(scale=(0.5, 2.0), rotate=10.0, blur=True),
    "mmseg": dict(scale=(0.5, 2.0), fit=(90, 50), max_share=0.75, photometric=True, centre=False),
    "ours": dict(scale=(0.5, 2.0), colour=0.3),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(40, 60), (13, 90), (1, 1), (96, 130)])
def test_every_family_is_a_pure_function(family, size):
    image, label = scene(*size)
    before = image.copy(), label.copy()
    for seed in range(8):
        one, two = (transforms.augment(image, label, rng(seed), 48, **FAMILIES[family])
                    for _ in range(2))
        for a, b, shape in zip(one, two, [(48, 48, 3), (48, 48)], strict=True):
            assert (np.array_equal(a, b) and a.shape == shape and a.dtype == np.uint8
                    and a.flags.c_contiguous)
        assert set(np.unique(one[1])) <= {0, 1, 2, 3, 4, 255}
    assert np.array_equal(image, before[0]) and np.array_equal(label, before[1])


def test_threads_do_not_matter():
    image, label = scene(200, 300)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        results.append([transforms.augment(image, label, rng(3), 96, **family)
                        for family in FAMILIES.values()])
    torch.set_num_threads(threads)
    assert all(np.array_equal(a, b) for one, two in zip(*results, strict=True)
               for a, b in zip(one, two, strict=True))


def test_quarter_turn():
    """Ninety degrees counter-clockwise about the centre of OpenCV, (W / 2, H / 2) counted from the
    first pixel's centre: the pixel right of the centre comes from above it. What comes from outside
    is mean colour and void."""
    image, label = scene(8, 8)
    x, y = transforms.random_rotation(image, label, Always(90.0), 90)
    for row in range(1, 8):
        for column in range(8):
            # a counter-clockwise turn moves (row, column) to (8 - column, row)
            source = 8 - column, row
            inside = 0 <= row < 8 and 0 <= source[0] < 8
            if inside:
                moved = y[8 - column, row], label[row, column]
                assert moved[0] == moved[1]
    assert (y[0] == 255).all() and (x[0] == transforms.MEAN_COLOUR).all()


def test_small_rotations_move_image_and_label_alike():
    label = np.zeros((41, 61), np.uint8)
    label[10:31, 20:41] = 1
    image = np.repeat(label[..., None] * 200, 3, axis=-1)
    for angle in (-10.0, 6.0, 10.0):
        x, y = transforms.random_rotation(image, label, Always(angle), 10)
        inside = y != 255
        assert ((x[..., 0] > 100) == (y == 1))[inside].mean() > 0.99
        # Positive is counter-clockwise: the right end of the upper edge goes up.
        top = [int(np.argmax(y[:, column] == 1)) for column in (22, 38)]
        assert (top[1] - top[0]) * angle < 0
    assert np.array_equal(transforms.random_rotation(image, label, Always(0.0), 10)[1], label)


def test_blur_by_hand():
    """A single bright pixel becomes the outer product of [1 4 6 4 1] / 16; borders are mirrored
    without the edge pixel."""
    image = np.zeros((9, 11, 3), np.uint8)
    image[4, 5] = 255
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    expected = np.floor(255 * np.outer(kernel, kernel) + 0.5)
    assert np.array_equal(transforms.random_blur(image, Always())[2:7, 3:8, 0], expected)
    image = np.zeros((9, 11, 3), np.uint8)
    image[4, 1] = 255  # one beside the border: seen twice by the border pixel
    blurred = transforms.random_blur(image, Always())[4, :4, 0]
    assert blurred.tolist() == [np.floor(255 * w * 6 / 16 + 0.5)
                                for w in (8 / 16, 7 / 16, 4 / 16, 1 / 16)]
    assert (transforms.random_blur(np.full((5, 7, 3), 201, np.uint8), Always()) == 201).all()


def test_crops_without_a_dominant_class():
    """One class fills nine tenths: crops that show more than max_share of it are drawn again, at
    most ten times."""
    label = np.zeros((100, 100), np.uint8)
    label[:, 90:] = 1
    label[:5] = 255
    image = np.repeat(label[..., None], 3, axis=-1)

    def share(seed, max_share):
        window = transforms.random_crop(image, label, rng(seed), 24, max_share)[1]
        counts = np.bincount(window.ravel(), minlength=256)[:255]
        return counts.max() / max(1, counts.sum())

    plain = np.mean([share(seed, 1.0) < 0.75 for seed in range(200)])
    bounded = np.mean([share(seed, 0.75) < 0.75 for seed in range(200)])
    assert plain < 0.2 and 1 - bounded == pytest.approx((1 - plain) ** 11, abs=0.1)
    # A crop of one class alone is no good, and if nothing else exists the last one is taken.
    assert transforms.random_crop(image[20:60, :60], label[20:60, :60], rng(), 24,
                                  0.75)[1].shape == (24, 24)
    void = np.full((30, 30), 255, np.uint8)
    assert transforms.random_crop(image[:30, :30], void, rng(), 24, 0.75)[1].shape == (24, 24)


@pytest.mark.parametrize("centre,top,left", [(True, 3, 7), (False, 0, 0)])
def test_padding(centre, top, left):
    image, label = scene(40, 33)
    x, y = transforms.augment(image, label, rng(), 47, flip=False, centre=centre)
    assert np.array_equal(x[top : top + 40, left : left + 33], image)
    assert np.array_equal(y[top : top + 40, left : left + 33], label)
    outside = np.ones_like(y, bool)
    outside[top : top + 40, left : left + 33] = False
    assert (y[outside] == 255).all() and (x[outside] == transforms.MEAN_COLOUR).all()


def test_distortion_leaves_the_padding_alone():
    image, label = scene(20, 20)
    for seed in range(10):
        x, y = transforms.augment(image, label, rng(seed), 32, photometric=True, centre=False)
        assert (x[y == 255] == transforms.MEAN_COLOUR).all()


def test_scale_to_fit():
    """(long, short) = (200, 50): the short side becomes 50 times the factor, unless the image is
    longer than 4 : 1."""
    image, label = scene(40, 60)

    class Factor(Always):
        def integers(self, low, high=None):
            return 0
    x, y = transforms.augment(image, label, Factor(1.5), 300, fit=(200, 50), scale=(0.5, 2.0),
                              flip=False, centre=False)
    assert (y != 255).any(1).sum() == 75 and (y != 255).any(0).sum() == 113  # 112.5 is rounded up


@pytest.mark.parametrize("step,uniform,integer",
                         [("contrast", 1.5, 0), ("saturation", 0.5, 0), ("hue", 1.0, 17)])
def test_photometric_steps(step, uniform, integer):
    image = smooth()

    class Only(Always):
        """Heads for one step: the coins are brightness, order, [contrast,] saturation, hue[,
        contrast]."""
        def __init__(self):
            super().__init__(uniform, integer)
            self.coins = iter({"contrast": (1, 0, 0, 1, 1), "saturation": (1, 1, 0, 1, 1),
                               "hue": (1, 1, 1, 0, 1)}[step])

        def random(self):
            return next(self.coins)

    out = transforms.photometric_distortion(image, Only()).astype(int)
    if step == "contrast":
        assert np.array_equal(out, np.minimum(np.floor(image * 1.5), 255))
        return
    for row, column in ((5, 7), (30, 50), (12, 33)):
        h, s, v = colorsys.rgb_to_hsv(*(image[row, column] / 255))
        h, s = (h, s * 0.5) if step == "saturation" else ((h + 34 / 360) % 1, s)
        expected = np.array(colorsys.hsv_to_rgb(h, s, v)) * 255
        # hue and saturation pass through bytes
        assert np.abs(out[row, column] - expected).max() < 6


def test_photometric_distortion_changes_what_it_says():
    """Over many draws: half of all images keep their mean within the contrast steps alone, none
    leaves bytes, grey stays grey."""
    grey = np.full((8, 8, 3), 120, np.uint8)
    seen = {tuple(transforms.photometric_distortion(grey, rng(seed))[0, 0]) for seed in range(60)}
    assert all(len(set(colour)) == 1 for colour in seen) and len(seen) > 20
    same = sum(np.array_equal(transforms.photometric_distortion(smooth(), rng(seed)), smooth())
               for seed in range(200))
    assert 3 <= same <= 30  # all four coins tails: one in sixteen
