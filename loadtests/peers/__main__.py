"""`python -m loadtests.peers litserve|ray --checkpoint checkpoints/blip-vqa-shapes --port 8000`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from loadtests.peers.options import Peer


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    parser.add_argument("framework", choices=("litserve", "ray"))
    parser.add_argument("--port", type=int, default=8000, help="of the loopback address (%(default)s)")
    parser.add_argument("--checkpoint", required=True, help="a directory that Hugging Face's BLIP reads")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of one forward pass (%(default)s)")
    parser.add_argument("--max-batch-size", type=int, default=32, help="requests (%(default)s)")
    parser.add_argument("--batch-wait-s", type=float, default=0.005, help="for batch mates (%(default)s)")
    given = vars(parser.parse_args(arguments))
    port = given.pop("port")
    try:
        peer = Peer.model_validate(given)
    except ValidationError as error:
        parser.error(str(error))
    if peer.framework == "litserve":
        from loadtests.peers.litserve_blip import serve
    else:
        from loadtests.peers.ray_blip import serve
    serve(peer, port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
