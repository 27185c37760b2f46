"""What augmentation draws: from which range, how often, and that both ends of the range occur."""

import numpy as np
import pytest

from datasets import transforms


class Spy:
    """A generator that remembers every range it was asked for. Coins fall as `coins` says, over and
    over; numbers lie at `place` of their range: 0 its lower end, 1 the last value."""

    def __init__(self, coins=(0.0,), place=0.0):
        self.coins, self.place, self.flips, self.ranges = coins, place, 0, []

    def random(self):
        self.flips += 1
        return self.coins[(self.flips - 1) % len(self.coins)]

    def uniform(self, low, high, size=None):
        self.ranges.append((low, high))
        value = low + (high - low) * self.place
        return value if size is None else np.full(size, value)

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        self.ranges.append((low, high - 1))  # both ends belong to it
        return low + round((high - 1 - low) * self.place)


def scene(height=40, width=60, classes=5):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, generator.integers(0, classes, (height, width)).astype(np.uint8)


def often(step):
    """How often a step of 400 generators changes anything."""
    image, label = scene(8, 8)
    before = image.copy()
    changed = [step(image, label, np.random.default_rng(seed)) for seed in range(400)]
    return np.mean([not np.array_equal(x, before) for x in changed])


# -------------------------------------------------------------------------------- sizes and places


@pytest.mark.parametrize("place,factor", [(0.0, 0.5), (1.0, 2.0), (0.5, 1.25)])
def test_one_factor_for_both_sides(place, factor):
    spy = Spy(place=place)
    image, label = transforms.random_scale(*scene(40, 60), spy, 0.5, 2.0)
    assert label.shape == image.shape[:2] == (40 * factor, 60 * factor)
    assert spy.ranges == [(0.5, 2.0)]  # drawn once


def test_the_factor_is_on_the_fitted_size():
    spy = Spy(place=1.0)
    image, label = scene(40, 60)
    x, y = transforms.augment(image, label, spy, 300, fit=(120, 60), scale=(0.5, 2.0), flip=False,
                              centre=False)
    inside = y != 255
    assert spy.ranges[0] == (0.5, 2.0) and (inside.any(1).sum(), inside.any(0).sum()) == (120, 180)


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_crops_reach_the_first_and_the_last_pixel(place):
    image, label = scene(40, 60)
    spy = Spy(place=place)
    x, y = transforms.random_crop(image, label, spy, 32)
    top, left = (0, 0) if place == 0 else (8, 28)
    assert np.array_equal(x, image[top : top + 32, left : left + 32])
    assert np.array_equal(y, label[top : top + 32, left : left + 32])
    assert spy.ranges == [(0, 8), (0, 28)]  # rows and columns apart
    assert transforms.random_crop(image, label, Spy(place=place), 50)[1].shape == (40, 50)


@pytest.mark.parametrize("degrees", [10.0, 3.0])
def test_turned_to_both_sides_every_second_time(degrees):
    image, label = scene()
    spy = Spy()
    transforms.random_rotation(image, label, spy, degrees)
    assert spy.ranges == [(-degrees, degrees)]
    assert 0.4 < often(lambda i, l, rng: transforms.random_rotation(i, l, rng, 90.0)[0]) < 0.6


def test_turned_labels_have_no_new_classes():
    """Nearest pixels only: two classes, 0 and 200, never give another but 255."""
    label = np.zeros((30, 30), np.uint8)
    label[10:20, 10:20] = 200
    image = np.zeros((30, 30, 3), np.uint8)
    turned = transforms.random_rotation(image, label, Spy(place=0.9), 30)[1]
    assert set(np.unique(turned)) == {0, 200, 255} and turned[0, 0] == 255


def test_blurred_every_second_time():
    assert 0.4 < often(lambda i, l, rng: transforms.random_blur(i, rng)) < 0.6


def test_mirrored_left_to_right_every_second_time():
    image, label = scene()
    x, y = transforms.random_flip(image, label, Spy())
    assert np.array_equal(x, image[:, ::-1]) and np.array_equal(y, label[:, ::-1])
    assert 0.4 < often(lambda i, l, rng: transforms.random_flip(i, l, rng)[0]) < 0.6


def test_image_is_resized_as_by_hand():
    """Pixel centres: enlarging (0, 100) twofold gives 0, 25, 75, 100."""
    image = np.repeat(np.array([[0, 100]], np.uint8)[..., None], 3, axis=-1)
    x, _ = transforms.resize(image, np.zeros((1, 2), np.uint8), 1, 4)
    assert x[0, :, 0].tolist() == [0, 25, 75, 100]


# ------------------------------------------------------------------------- the share of one class


def draws(label, max_share):
    """How many windows are drawn until one is taken; each draws a row and a column."""
    spy = Spy()
    transforms.random_crop(np.zeros((*label.shape, 3), np.uint8), label, spy, 10, max_share)
    return len(spy.ranges) // 2


@pytest.mark.parametrize("ones,void,count", [
    (26, 0, 1),    # 74 of 100 pixels are of class 0
    (25, 0, 11),   # exactly 75: drawn again, ten times, and then taken
    (20, 30, 1),   # 50 of 70 labelled pixels; of all 100 it would be fewer still
    (20, 10, 11),  # 70 of 90 labelled pixels, although only 70 of all 100
    (10, 80, 1),   # 10 of 20: void covers more, and is no class
    (0, 50, 11),   # one class alone
])
def test_the_share_is_one_of_labelled_pixels(ones, void, count):
    label = np.zeros(100, np.uint8)
    label[:ones], label[ones : ones + void] = 1, 255
    assert draws(label.reshape(10, 10), 0.75) == count
    assert draws(label.reshape(10, 10), 1.0) == 1


# ---------------------------------------------------------------------------------------- colours


def test_colours_by_hand():
    """Three factors from 1 - s .. 1 + s: of the picture, about its mean, about a pixel's grey."""
    image = scene(6, 7)[0]

    class Factors(Spy):
        def uniform(self, low, high, size=None):
            self.ranges.append((low, high, size))
            return np.array([0.9, 1.2, 0.7])

    spy = Factors()
    got = transforms.random_colour(image, spy, 0.3)
    x = image * 0.9
    x = (x - x.mean()) * 1.2 + x.mean()
    grey = x.mean(-1, keepdims=True)
    wanted = ((x - grey) * 0.7 + grey).clip(0, 255)
    assert spy.ranges == [(0.7, 1.3, 3)] and np.abs(got - np.floor(wanted)).max() <= 1


def test_distortion_by_its_ranges():
    """All steps: brightness, contrast, saturation, hue in OpenCV's 180 steps; contrast once, first
    or last."""
    image = scene(6, 7)[0]
    for coins in ((0.0,), (0.0, 0.9, 0.0, 0.0, 0.0)):  # the second coin says which comes first
        spy = Spy(coins, place=0.5)
        transforms.photometric_distortion(image, spy)
        contrast, colours = [(0.5, 1.5)], [(0.5, 1.5), (-18, 17)]
        order = [*contrast, *colours] if coins[1:] == () else [*colours, *contrast]
        assert spy.ranges == [(-32, 32), *order]
        assert spy.flips == 5
    spy = Spy((0.9,))
    assert np.array_equal(transforms.photometric_distortion(image, spy), image)
    assert spy.ranges == [] and spy.flips == 5


def test_each_distortion_every_second_time():
    seen = np.zeros(3)
    for seed in range(400):
        spy, generator = Spy(), np.random.default_rng(seed)
        spy.random = generator.random
        transforms.photometric_distortion(np.zeros((2, 2, 3), np.uint8), spy)
        seen += [spy.ranges.count(one) for one in ((-32, 32), (0.5, 1.5), (-18, 17))]
    assert np.abs(seen / 400 - (0.5, 1.0, 0.5)).max() < 0.1  # (0.5, 1.5): contrast and saturation


@pytest.mark.parametrize("change", [dict(colour=0.5), dict(photometric=True)])
def test_padding_is_never_recoloured(change):
    image, label = scene(20, 20)
    for seed in range(10):
        x, y = transforms.augment(image, label, np.random.default_rng(seed), 32, **change)
        assert (x[y == 255] == transforms.MEAN_COLOUR).all() and (y == 255).sum() == 32**2 - 20**2


# -------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("family", [
    dict(scale=(0.5, 2.0), rotate=10.0, blur=True),
    dict(scale=(0.5, 2.0), fit=(90, 50), max_share=0.75, photometric=True, centre=False),
])
def test_renaming_classes_before_or_after_is_the_same(family):
    """Class numbers carry no order: augmentation commutes with a permutation of them."""
    image, label = scene()
    renamed = np.arange(256, dtype=np.uint8)
    renamed[:5] = [3, 0, 4, 1, 2]
    for seed in range(6):
        x, y = transforms.augment(image, label, np.random.default_rng(seed), 32, **family)
        again, other = transforms.augment(image, renamed[label], np.random.default_rng(seed), 32,
                                          **family)
        assert np.array_equal(x, again) and np.array_equal(renamed[y], other)


def test_the_recipe_reaches_augmentation():
    """Every field of a recipe that is a name of `augment` is handed on."""
    from common.recipe import Recipe
    recipe = Recipe(crop_size=33, scale=(0.5, 2.0), fit=(90, 50), rotate=7.0, blur=True, flip=False,
                    max_share=0.6, colour=0.2, photometric=True, centre=False)
    assert transforms.augmentation(recipe).keywords == dict(
        crop=33, scale=(0.5, 2.0), fit=(90, 50), rotate=7.0, blur=True, flip=False, max_share=0.6,
        colour=0.2, photometric=True, centre=False)
