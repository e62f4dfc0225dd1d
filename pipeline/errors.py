"""How things end that do not end well: mistakes, failures, and being asked to stop."""


class UserError(ValueError):
    """A wrong input, with a message that names the culprit and what to do next.

    Jobs print the message as one line and exit with code 2; no traceback is shown.
    """


class TrainingFailed(RuntimeError):
    """A training that came to an end without a result, with the reason. Jobs exit with code 1."""


class TrainingStopped(RuntimeError):
    """A training that was asked to stop, has saved, and can be resumed. Jobs exit with code 143."""
