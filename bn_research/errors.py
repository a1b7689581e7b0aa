"""The one exception that a command turns into one line for the user."""


class UserError(Exception):
  """A mistake of the user's: one line that names what is wrong and the fix.

  Commands print it as `error: ...` and exit with status 2; a traceback is for
  our own mistakes.
  """
