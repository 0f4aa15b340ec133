"""What the service must show, each bar measured side by side in one run: `python -m loadtests claims`."""
