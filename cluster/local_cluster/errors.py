"""The one exception a caller of this package has to handle."""


class LocalClusterError(RuntimeError):
    """Something on this machine is missing or did not come up; the message says what, and what to do."""
