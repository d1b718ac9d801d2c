"""The error of a lock that another process holds."""


class Locked(ValueError):
    """Another process holds the lock."""
