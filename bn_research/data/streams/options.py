"""The options of a stream: the section `config.data.stream`."""

import dataclasses

from bn_research import ranges
from bn_research.data.streams import orders, photometric, windows

_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Options:
  """A dataset as a stream: images are read while the run trains.

  Attributes:
    image_size: The height and width of the images of a batch, in pixels. An
      image of the training is a random window, scaled to this size. None for
      images as stored, which then have one shape.
    min_area: The least area of a random window, as a part of the image. The
      area is uniform from here to 1, and the logarithm of width / height is
      uniform from log(3/4) to log(4/3).
    distort: Random brightness, contrast and colour of the training images:
      `none`, `reduced` or `full`.
    crops: The windows of an image in the evaluation: 1 for the centre, 10 for
      centre and corners with their mirror images, or 144 on four scales. The
      evaluation takes the mean of the probabilities.
    shuffle: The order in each epoch. `examples`: a permutation of all examples,
      as for a dataset in memory. `within_shards`: the files in random order,
      and the examples of a file in random order. `shards`: the files in random
      order, and the examples of a file as stored.
    max_corrupt: How many examples may be unreadable. The next readable example
      replaces an unreadable example of the training.
    threads: The threads that read and decode, in each process; None for one
      thread a core.
    workers: The processes that read and decode; 0 for the process of the run.
  """

  image_size: int | None = None
  min_area: float = 0.08
  distort: str = 'none'
  crops: int = 1
  shuffle: str = 'examples'
  max_corrupt: int = 10
  threads: int | None = None
  workers: int = 0

  def __post_init__(self):
    """Raises a ValueError for an option out of range."""
    if self.image_size is not None:
      ranges.whole(1, 2**14, image_size=self.image_size)
    elif self.crops != 1:
      raise ValueError(f'crops={self.crops} needs image_size; give both')
    # The negated comparison also refuses NaN.
    if not 0 < self.min_area <= 1:
      raise ValueError(f'min_area={self.min_area}; choose a number in (0, 1]')
    ranges.whole(0, _MOST, max_corrupt=self.max_corrupt)
    ranges.whole(0, 512, workers=self.workers)
    if self.threads is not None:
      ranges.whole(1, 512, threads=self.threads)
    for key, choices in (
      ('distort', photometric.STRENGTHS),
      ('crops', windows.EVALUATION),
      ('shuffle', orders.ORDERS),
    ):
      if getattr(self, key) not in choices:
        raise ValueError(
          f'{key}={getattr(self, key)!r}; choose {", ".join(map(str, choices))}'
        )
