"""The service's own batcher and controller on a virtual clock: `python -m loadtests.simulate --help`."""
