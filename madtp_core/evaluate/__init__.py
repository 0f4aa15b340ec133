"""How well a model answers and what it spends, for every task, through the path that is served.

Three steps, each replaceable: samples (drawn scenes, or a user's files), the model's own `predict`, and the
task's score.
"""

from madtp_core.evaluate.gallery import Gallery, evaluate_gallery
from madtp_core.evaluate.outlay import Outlay
from madtp_core.evaluate.paired import Paired, compare, read_outcomes, write_outcomes
from madtp_core.evaluate.read import read_gallery, read_manifest, read_samples
from madtp_core.evaluate.records import Journal
from madtp_core.evaluate.run import Evaluation, Progress, evaluate, predict
from madtp_core.evaluate.samples import Sample
from madtp_core.evaluate.scores import MEASURES
from madtp_core.evaluate.shapes import MIXES, ShapesSamples, shapes_gallery

__all__ = [
    "MEASURES",
    "MIXES",
    "Evaluation",
    "Gallery",
    "Journal",
    "Outlay",
    "Paired",
    "Progress",
    "Sample",
    "ShapesSamples",
    "compare",
    "evaluate",
    "evaluate_gallery",
    "predict",
    "read_gallery",
    "read_manifest",
    "read_outcomes",
    "read_samples",
    "shapes_gallery",
    "write_outcomes",
]
