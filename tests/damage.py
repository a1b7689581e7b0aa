"""Damage to a file, at random: a flipped bit, a cut, zeros, or no file."""


def flip(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def cut(path, rng):
  content = path.read_bytes()
  path.write_bytes(content[: rng.randrange(len(content))])


def zero(path, rng):
  content = bytearray(path.read_bytes())
  start = rng.randrange(len(content))
  content[start : start + 512] = bytes(len(content[start : start + 512]))
  path.write_bytes(content)


def remove(path, rng):
  del rng
  path.unlink()


HARMS = {'flip': flip, 'cut': cut, 'zero': zero, 'remove': remove}
