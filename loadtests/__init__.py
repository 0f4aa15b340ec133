"""Open-loop load tests of the service: `python -m loadtests --help`."""
