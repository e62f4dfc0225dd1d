"""The errors that jobs report to the user in one line, each with its exit code."""


class UserError(ValueError):
    """An invalid input; the message names it and says what to do.

    Jobs print the message as one line, without a traceback, and exit with code 2.
    """


class OutageError(RuntimeError):
    """A service (a store, the network, a source of credentials) does not respond, after retries.

    The same call may succeed later. Workers are restarted for it; jobs exit with code 1.
    """


class TrainingFailed(RuntimeError):
    """A training ended without a result; the message gives the reason. Jobs exit with code 1."""


class TrainingStopped(RuntimeError):
    """A training was stopped, has saved a checkpoint and can be resumed. Exit code 143."""


class LeaseLostError(TrainingFailed):
    """Another process has taken over the run, which this one must not write to any more."""
