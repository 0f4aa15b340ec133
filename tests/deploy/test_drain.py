"""The service is told to end while it is full: nobody who is inside goes without an answer."""

import pytest

from deploy import drain


@pytest.mark.slow
def test_at_sigterm_all_who_are_inside_are_answered_and_the_status_is_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Starts the service on the demo checkpoints; a quarter of a minute on two processors."""
    status = drain.main(["--requests", "120"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert int(said.split()[0]) >= drain.WAITING
