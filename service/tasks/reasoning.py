"""Reasoning over two images (NLVR2): is a statement about them true?"""

from typing import Annotated

from pydantic import Field

from service.schemas import IMAGE_HELP, Image, Reply, ReplyReport, RequestFields, Text
from service.tasks.base import EXAMPLE_IMAGE, Task


class ReasoningFields(RequestFields):
    """A statement about two images."""

    images: Annotated[list[Image], Field(min_length=2, max_length=2)] = Field(
        description=f"the left and the right picture: {IMAGE_HELP}"
    )
    statement: Text = Field(description="what may be true of the two")

    def texts_read(self) -> list[str]:
        return [self.statement]


class ReasoningReply(Reply):
    """Whether the statement is true."""

    answer: bool
    score: float = Field(description="the model's probability that it is true")
    report: ReplyReport = None


REASONING = Task(
    name="reasoning",
    path="/v1/reasoning",
    summary="Say whether a statement about two images is true",
    description="Reads both images and the statement; the score is the probability of true.",
    fields=ReasoningFields,
    reply=ReasoningReply,
    examples={
        "two pictures": {
            "images": [EXAMPLE_IMAGE, EXAMPLE_IMAGE],
            "statement": "both images contain a red circle",
        }
    },
)
