"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """A wrong input, with a message that names the culprit and what to do next.

    Jobs print the message as one line and exit with code 2; no traceback is shown.
    """
