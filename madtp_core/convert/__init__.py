"""Released checkpoints of others into ours: the reference of MADTP, the original BLIP, OpenAI's CLIP."""

from __future__ import annotations

from madtp_core.convert.conversion import Conversion, convert_file, convert_state_dict

__all__ = ["Conversion", "convert_file", "convert_state_dict"]
