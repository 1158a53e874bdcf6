"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input, said in one clear sentence: the thing, the cause, the next command.

    The command line prints it without a traceback and exits with code 2.
    """


class EngineCrashedError(UserError):
    """The engine's process is gone; what it was asked for may work in a new one."""


class EngineMissingError(UserError):
    """The engine that would run a file is not installed here."""
