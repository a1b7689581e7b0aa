"""Numbers of a traced program as arguments of the program.

A learning rate or an ε is a literal in a traced program. Programs of runs that
differ in such numbers only have equal equations with different literals. Here
these literals are found, and the program is evaluated with other values in
their places. The method needs nothing of the code that was traced, and thus
serves every normalization, optimizer and network, also those of a user.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from bn_research.training import keys

# The place of a literal in a program: the numbers of equations, the names of
# their parameters, and at last a kind and a position.
Path = tuple[Any, ...]
Numbers = Mapping[Path, Any]


class Different(Exception):
  """Two programs differ in more than numbers."""


def differences(
  program: core.ClosedJaxpr, other: core.ClosedJaxpr, path: Path = ()
) -> Iterator[tuple[Path, Any, Any]]:
  """Yields the numbers in which two programs differ.

  Args:
    program: A traced program.
    other: The same program, traced with other numbers.
    path: The place of both programs in a larger program.

  Yields:
    The place of a number, the value in `program` and the value in `other`.

  Raises:
    Different: If the programs differ in more than numbers.
  """
  for k, (one, two) in enumerate(_pairs(program.consts, other.consts)):
    yield from _of_consts((*path, 'const', k), one, two)
  yield from _of_jaxprs(program.jaxpr, other.jaxpr, path)


def _of_jaxprs(one: Any, two: Any, path: Path) -> Iterator[Any]:
  """Yields the differences of two jaxprs; see `differences`."""
  twins: dict[Any, Any] = {}

  def define(ones: Sequence[Any], twos: Sequence[Any]) -> None:
    for x, y in _pairs(ones, twos):
      if x.aval != y.aval:
        raise Different(f'an array is {x.aval} in one and {y.aval} in another')
      twins[y] = x

  def read(k: int, x: Any, y: Any, at: Path) -> Iterator[Any]:
    literals = isinstance(x, core.Literal), isinstance(y, core.Literal)
    if all(literals):
      yield from _of_values((*at, 'literal', k), *map(_value, (x, y)))
    elif any(literals) or twins[y] is not x:
      raise Different('an operation has other operands')

  define(one.constvars, two.constvars)
  define(one.invars, two.invars)
  for place, (a, b) in enumerate(_pairs(one.eqns, two.eqns)):
    at = (*path, place)
    if a.primitive is not b.primitive:
      raise Different(f'{a.primitive} in one is {b.primitive} in another')
    for k, (x, y) in enumerate(_pairs(a.invars, b.invars)):
      yield from read(k, x, y, at)
    yield from _of_equations(a, b, at)
    define(a.outvars, b.outvars)
  for k, (x, y) in enumerate(_pairs(one.outvars, two.outvars)):
    yield from read(k, x, y, (*path, 'out'))


def _of_equations(one: Any, two: Any, path: Path) -> Iterator[Any]:
  """Yields the differences within the parameters of two equations."""
  kind = one.primitive.name
  for name in _names(one.params, two.params):
    pair = one.params[name], two.params[name]
    for found in _of_params(*pair, (*path, name), kind in _INLINED):
      if kind not in (*_INLINED, *_REBUILT):
        raise Different(f'numbers within {kind} differ')
      yield found


def _of_params(one: Any, two: Any, path: Path, is_rule: bool) -> Iterator[Any]:
  """Yields the differences within a parameter of an equation."""
  if isinstance(one, core.ClosedJaxpr):
    yield from differences(one, two, path)
  elif isinstance(one, core.Jaxpr):
    yield from _of_jaxprs(one, two, path)
  elif isinstance(one, tuple | list):
    for k, (x, y) in enumerate(_pairs(one, two)):
      yield from _of_params(x, y, (*path, k), is_rule)
  elif is_rule:
    return  # Rules of derivatives, which a traced program does not need.
  elif isinstance(one, np.ndarray | jax.Array):
    if not np.array_equal(one, two):
      raise Different(f'the parameter {path[-1]} differs')
  elif one != two and not (one != one and two != two):  # NaN equals NaN here.
    raise Different(f'{path[-1]}={one} in one is {two} in another')


def _of_consts(path: Path, one: Any, two: Any) -> Iterator[Any]:
  """Yields the difference of two constants; keys cannot be lifted."""
  are_keys = keys.is_key(one), keys.is_key(two)
  if any(are_keys):
    if not all(are_keys) or not (one == two).all():
      raise Different('a key of random numbers is a constant, and differs')
    return
  yield from _of_values(path, np.asarray(one), np.asarray(two))


def _of_values(
  path: Path, one: np.ndarray, two: np.ndarray
) -> Iterator[tuple[Path, Any, Any]]:
  if (one.shape, one.dtype) != (two.shape, two.dtype):
    raise Different(
      f'a constant is {one.dtype}{list(one.shape)} in one and'
      f' {two.dtype}{list(two.shape)} in another'
    )
  if one.tobytes() != two.tobytes():
    yield path, one, two


def _value(literal: Any) -> np.ndarray:
  return np.asarray(literal.val, literal.aval.dtype)


def _pairs(one: Sequence[Any], two: Sequence[Any]) -> list[tuple[Any, Any]]:
  if len(one) != len(two):
    raise Different('one has more operations than another')
  return list(zip(one, two, strict=True))


def _names(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
  if one.keys() != two.keys():
    raise Different('an operation has other parameters')
  return sorted(one)


def evaluate(
  program: core.ClosedJaxpr,
  numbers: Numbers,
  *args: Any,
  path: Path = (),
) -> list[Any]:
  """Evaluates a program, with other values in the place of some numbers.

  Args:
    program: The traced program.
    numbers: The values by place, as `differences` names the places.
    *args: The arguments of the program, which may be traced.
    path: The place of the program in a larger program.

  Returns:
    The results of the program.
  """
  jaxpr = program.jaxpr
  env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
  for k, (var, const) in enumerate(
    zip(jaxpr.constvars, program.consts, strict=True)
  ):
    env[var] = numbers.get((*path, 'const', k), const)
  inner = {key[len(path)] for key in numbers if key[: len(path)] == path}

  def read(at: Path, atoms: Sequence[Any]) -> list[Any]:
    return [
      numbers.get((*at, 'literal', k), atom.val)
      if isinstance(atom, core.Literal)
      else env[atom]
      for k, atom in enumerate(atoms)
    ]

  for place, equation in enumerate(jaxpr.eqns):
    at = (*path, place)
    if place in inner:
      values = read(at, equation.invars)
      results = _rebuilt(jaxpr, equation, numbers, values, at)
    else:
      results = _as_it_is(jaxpr, equation, env)
    env.update(zip(equation.outvars, results, strict=True))
  return read((*path, 'out'), jaxpr.outvars)


def _as_it_is(jaxpr: Any, equation: Any, env: Mapping[Any, Any]) -> list[Any]:
  """Evaluates an equation without a change."""
  atoms = [v for v in equation.invars if not isinstance(v, core.Literal)]
  used = list(dict.fromkeys(atoms))
  # A program of the single equation is a way that all versions of JAX have.
  alone = jaxpr.replace(
    constvars=[],
    invars=used,
    outvars=equation.outvars,
    eqns=[equation],
    effects=equation.effects,
    debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
  )
  return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*map(env.get, used))


def _rebuilt(
  jaxpr: Any,
  equation: Any,
  numbers: Numbers,
  values: Sequence[Any],
  path: Path,
) -> list[Any]:
  """Evaluates an equation with other numbers in it."""
  name, params = equation.primitive.name, equation.params

  def call(key: str, *place: int) -> Callable[..., list[Any]]:
    inner: Any = params[key]
    for k in place:
      inner = inner[k]
    if isinstance(inner, core.Jaxpr):
      inner = core.ClosedJaxpr(inner, ())
    return lambda *args: evaluate(
      inner, numbers, *args, path=(*path, key, *place)
    )

  if name in _INLINED:
    (key,) = {*params} & {'jaxpr', 'call_jaxpr', 'fun_jaxpr'}
    return call(key)(*values)
  if name in _REBUILT:
    return _REBUILT[name](equation, call, values)
  # The numbers are operands of the equation itself.
  variables = [
    core.Var(atom.aval) if isinstance(atom, core.Literal) else atom
    for atom in equation.invars
  ]
  given = dict(zip(variables, values, strict=True))
  return _as_it_is(jaxpr, equation.replace(invars=variables), given)


def _while(equation: Any, call: Any, values: Sequence[Any]) -> list[Any]:
  params = equation.params
  first, second = params['cond_nconsts'], params['body_nconsts']
  consts = values[:first], values[first : first + second]
  test, body = call('cond_jaxpr'), call('body_jaxpr')
  return jax.lax.while_loop(
    lambda carry: test(*consts[0], *carry)[0],
    lambda carry: body(*consts[1], *carry),
    list(values[first + second :]),
  )


def _scan(equation: Any, call: Any, values: Sequence[Any]) -> list[Any]:
  params, inner = equation.params, equation.params['jaxpr'].jaxpr
  # Versions of JAX tell the numbers of operands in different ways. An array
  # that the loop goes along has one more axis outside than inside.
  count = _num_equal_ranks(equation.outvars, inner.outvars)
  first = _num_equal_ranks(equation.invars, inner.invars) - count
  consts, init = values[:first], list(values[first : first + count])
  step = call('jaxpr')

  def body(carry: Any, x: Any) -> tuple[Any, Any]:
    results = step(*consts, *carry, *x)
    return results[:count], results[count:]

  carry, stacked = jax.lax.scan(
    body,
    init,
    list(values[first + count :]),
    length=params['length'],
    reverse=params['reverse'],
    unroll=params['unroll'],
  )
  return [*carry, *stacked]


def _num_equal_ranks(outside: Sequence[Any], inside: Sequence[Any]) -> int:
  pairs = zip(outside, inside, strict=True)
  return sum(len(x.aval.shape) == len(y.aval.shape) for x, y in pairs)


def _cond(equation: Any, call: Any, values: Sequence[Any]) -> list[Any]:
  index, *operands = values
  branches = [
    call('branches', k) for k in range(len(equation.params['branches']))
  ]
  return jax.lax.switch(index, branches, *operands)


def _remat(equation: Any, call: Any, values: Sequence[Any]) -> list[Any]:
  # JAX translates rematerialization to a barrier as well, which keeps XLA from
  # the reuse of values that are to be computed again.
  params = equation.params
  if params['differentiated'] and params['prevent_cse']:
    values = jax.lax.optimization_barrier(list(values))
  return call('jaxpr')(*values)


_INLINED = (
  *('pjit', 'jit', 'closed_call', 'core_call'),
  *('custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr'),
)
_REBUILT: dict[str, Callable[..., list[Any]]] = {
  'while': _while,
  'scan': _scan,
  'cond': _cond,
  'checkpoint': _remat,
  'remat': _remat,
  'remat2': _remat,
}
