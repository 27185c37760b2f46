"""Reading MATLAB level-5 files (.mat), as much of them as label files need.

Source: MathWorks, "MAT-File Format". After a header of 128 bytes come data elements: a tag of two
32-bit words (type, byte count), the payload, and padding up to a multiple of 8. An array is an
element that holds elements: flags, dimensions, name, then numbers (column by column) or, for a
struct, the names of its fields and an array each.
"""

import itertools
import math
import struct
import zlib

import numpy as np

from common.errors import UserError

from .files import regular

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
           13: "u8"}
ARRAY, COMPRESSED = 14, 15  # types of elements that hold elements
STRUCT = 2  # a class of arrays; 6 to 15 are numbers
LIMIT = 1 << 26  # bytes of a file, packed or unpacked: a damaged one must not fill the memory


def read_ids(path, variable, field=None, highest=255):
    """The class ids in a variable, or in a field of a struct variable: uint16 [H, W].

    Raises UserError that names the file, also where a value is no integer from 0 to `highest`.
    """
    try:
        with open(regular(path), "rb") as file:
            data = memoryview(file.read(LIMIT + 1))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if bytes(data[:10]) == b"MATLAB 7.3" or bytes(data[:4]) == b"\x89HDF":
        raise UserError(
            f"{path} is a MATLAB 7.3 file; load it in MATLAB and save it again with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None or len(data) > LIMIT:
        raise UserError(f"{path} is not a MATLAB 5 file with labels")
    try:
        ids = _find(data[128:], order, variable, field)
    except (ValueError, IndexError, KeyError, struct.error, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if ids.ndim != 2 or ids.size == 0:
        raise UserError(f"{path}: {variable} has the shape {ids.shape}, wanted [height, width]")
    wrong = ids[~np.isin(ids, np.arange(highest + 1))]
    if wrong.size:
        raise UserError(f"{path} contains the value {wrong[0]:g}; valid are 0 to {highest}")
    return ids.astype(np.uint16)


def _find(data, order, variable, field):
    """The numbers of a variable (of its field, if one is named)."""
    for kind, payload in _unpacked(data, order):
        if kind != ARRAY:
            continue
        flags, dimensions, name, contents = _array(payload, order)
        if name != variable:
            continue
        if field is not None:
            if flags != STRUCT:
                raise ValueError(f"{variable} is no struct")
            flags, dimensions, _, contents = _array(_field(contents, order, field), order)
        shape = np.frombuffer(dimensions, f"{order}i4").tolist()
        if flags not in range(6, 16):
            raise ValueError(f"{field or variable} does not hold numbers")
        # often a narrower type than the array's class
        stored, payload = next(contents, (None, b""))
        numbers = np.frombuffer(payload, f"{order}{NUMBERS[stored]}")
        if min(shape) < 0 or math.prod(shape) != numbers.size:
            raise ValueError(f"{numbers.size} numbers for the shape {shape}")
        return numbers.reshape(shape, order="F")
    raise ValueError(f"it has no variable {variable}")


def _elements(data, order):
    """Yield (type, payload) of the elements that follow each other in `data`."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # a small element: up to four bytes in the place of the byte count
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        end = start + size
        if end > len(data) or size > 4 and start == at + 4 or not 1 <= kind <= 18:
            raise ValueError("it is cut short or damaged")
        yield kind, data[start:end]
        at = end if kind == COMPRESSED else end + (at - end) % 8


def _unpacked(data, order):
    """The same, with compressed elements replaced by what they hold."""
    for kind, payload in _elements(data, order):
        if kind == COMPRESSED:
            yield from _elements(memoryview(zlib.decompressobj().decompress(payload, LIMIT)), order)
        else:
            yield kind, payload


def _array(payload, order):
    """(class, dimensions as bytes, name, the elements after them) of an array."""
    elements = _elements(payload, order)
    (_, flags), (_, dimensions), (_, name) = itertools.islice(elements, 3)
    return flags[0 if order == "<" else 3], dimensions, bytes(name).decode("latin-1"), elements


def _field(contents, order, field):
    """The payload of one field of a struct, given the elements after the struct's name."""
    (_, length), (_, names) = itertools.islice(contents, 2)
    length = struct.unpack(f"{order}i", length)[0]
    for at, (_, payload) in zip(range(0, len(names), length), contents, strict=False):
        if bytes(names[at : at + length]).rstrip(b"\0") == field.encode():
            return payload
    raise ValueError(f"it has no field {field}")
