"""Where the rows of a text file begin, in four bytes a row."""

import bisect
from array import array

import numpy as np
from etils import epath

_BLOCK_BYTES = 2**22
_BLANK = np.frombuffer(b" \t\r\v\f", np.uint8)


class Offsets:
    """Increasing numbers, kept as 32-bit distances from the first of those that came with them."""

    def __init__(self):
        self._bases: list[int] = []
        self._distances: list[np.ndarray] = []
        self._before = [0]  # how many numbers stand before each group

    def extend(self, values: np.ndarray) -> None:
        """Add [n] int64 that are larger than those there are; a group for each call, so not one at a time."""
        if len(values) and values[-1] - values[0] >= 2**32:
            middle = len(values) // 2
            self.extend(values[:middle])
            self.extend(values[middle:])
        elif len(values):
            self._bases.append(int(values[0]))
            self._distances.append((values - values[0]).astype(np.uint32))
            self._before.append(self._before[-1] + len(values))

    def __len__(self) -> int:
        return self._before[-1]

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} offsets")
        group = bisect.bisect_right(self._before, index) - 1
        return self._bases[group] + int(self._distances[group][index - self._before[group]])


def lines(path: epath.Path) -> tuple[Offsets, array, int]:
    """Where a file's lines that are not empty begin; for every empty one, how many of the others stand
    before it; and the file's size in bytes."""
    offsets, empty = Offsets(), array("Q")

    def add(begins: np.ndarray, ends: np.ndarray, firsts: np.ndarray) -> None:
        # An empty line holds nothing, or the first half of Windows' end of line.
        blank = (begins == ends) | ((ends - begins == 1) & np.isin(firsts, _BLANK))
        places = np.flatnonzero(blank)
        empty.extend((len(offsets) + places - np.arange(len(places))).tolist())
        offsets.extend(begins[~blank])

    begin, size, last = 0, 0, 0  # of the line that goes on, of what was read, and its last byte
    with path.open("rb") as file:
        while content := file.read(_BLOCK_BYTES):
            block = np.frombuffer(content, np.uint8)
            ends = np.flatnonzero(block == ord("\n")) + size
            if len(ends):
                begins = np.concatenate([[begin], ends[:-1] + 1])
                # Of a line that goes on from the block before, what counts is whether it is one byte.
                firsts = np.where(begins < size, last, block[np.maximum(begins - size, 0)])
                add(begins, ends, firsts)
                begin = int(ends[-1]) + 1
            size, last = size + len(block), int(block[-1])
    if begin < size:
        add(np.array([begin]), np.array([size]), np.array([last]))
    return offsets, empty, size
