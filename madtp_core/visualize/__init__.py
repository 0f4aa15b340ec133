"""Pictures of pruning: what every block keeps, method against method, and how dense the blocks are."""

from madtp_core.visualize.blocks import blocks_figure
from madtp_core.visualize.canvas import load_image, save_png
from madtp_core.visualize.density import density_figure
from madtp_core.visualize.fate import Fate, State, WatchingPruner
from madtp_core.visualize.sight import Sight, images_wanted, look, with_method

__all__ = [
    "Fate",
    "Sight",
    "State",
    "WatchingPruner",
    "blocks_figure",
    "density_figure",
    "images_wanted",
    "load_image",
    "look",
    "save_png",
    "with_method",
]
