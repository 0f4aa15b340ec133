"""Visual question answering: an image and a question."""

from pydantic import BaseModel, Field

from service.schemas import IMAGE_HELP, Image, Reply, ReplyReport, RequestFields, Several, ShortText, Text
from service.tasks.base import EXAMPLE_IMAGE, Task


class VqaFields(RequestFields):
    """A question about one image."""

    image: Image = Field(description=f"the picture: {IMAGE_HELP}")
    question: Text = Field(description="what to ask of the picture")
    candidates: Several[ShortText] | None = Field(
        None, description="answers to rank; without them one is generated"
    )
    num_beams: int = Field(1, ge=1, le=16, description="beams of the generated answer; 1 is greedy")

    def texts_read(self) -> list[str]:
        return [self.question]


class RankedCandidate(BaseModel):
    """One candidate answer; `score` is its mean token log-probability."""

    candidate: str
    score: float


class VqaReply(Reply):
    """The answer; `ranked` holds all candidates, best first, when there were any."""

    answer: str
    score: float = Field(description="mean token log-probability")
    ranked: list[RankedCandidate] | None
    report: ReplyReport = None


_QUESTION = {"image": EXAMPLE_IMAGE, "question": "what color is the circle?"}

VQA = Task(
    name="vqa",
    path="/v1/vqa",
    summary="Ask a question about an image",
    description="Generates an answer, or ranks the candidates where there are any.",
    fields=VqaFields,
    reply=VqaReply,
    examples={
        "rank": _QUESTION | {"candidates": ["red", "blue", "green"], "report": "full"},
        "generate": _QUESTION,
    },
)
