"""What the user of a load test can repair: a wrong file, an address where nothing answers."""


class LoadTestError(Exception):
    """The message says what was wrong, where, and what is wanted."""
