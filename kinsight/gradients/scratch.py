"""Memory for what only passes through."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(eq=False)
class Scratch:
    """Memory that is given out again and again.

    A large tensor that is made and thrown away comes fresh from the operating system every time: touching it for the
    first time was measured at 0.3 to 1.5 ms a megabyte, several times as much as a matrix product takes to fill it.

    Args:
        places: what each place holds, flat.
    """

    places: dict[str, Tensor] = field(default_factory=dict)

    def take(self, place: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialized tensor, which ends what was taken for the same place before.

        Args:
            place: what it is for.
            shape: its shape.
            like: a tensor of its dtype and device.
        """
        n_elements = math.prod(shape)
        held = self.places.get(place)
        if held is None or held.numel() < n_elements or held.dtype != like.dtype or held.device != like.device:
            held = self.places[place] = like.new_empty(n_elements)
        return held[:n_elements].view(shape)
