"""Captioning: an image, and words to go on from if wanted."""

from pydantic import Field

from service.schemas import IMAGE_HELP, Image, Reply, ReplyReport, RequestFields, Text
from service.tasks.base import EXAMPLE_IMAGE, Task


class CaptionFields(RequestFields):
    """One image to describe."""

    image: Image = Field(description=f"the picture: {IMAGE_HELP}")
    prompt: Text | None = Field(None, description="what the caption goes on from; it is not repeated")
    num_beams: int = Field(1, ge=1, le=16, description="beams of the caption; 1 is greedy")
    max_new_tokens: int = Field(20, ge=1, le=100, description="tokens of the caption at most")

    def texts_read(self) -> list[str]:
        return [] if self.prompt is None else [self.prompt]


class CaptionReply(Reply):
    """The caption, without its prompt."""

    caption: str
    score: float = Field(description="mean token log-probability")
    report: ReplyReport = None


CAPTION = Task(
    name="caption",
    path="/v1/caption",
    summary="Describe an image",
    description="Writes a caption, behind the prompt where there is one.",
    fields=CaptionFields,
    reply=CaptionReply,
    examples={
        "describe": {"image": EXAMPLE_IMAGE},
        "beams": {"image": EXAMPLE_IMAGE, "num_beams": 3, "max_new_tokens": 12, "quality": "exact"},
    },
)
