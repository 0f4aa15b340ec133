"""Embeddings: images, texts, or both as unit vectors."""

from pydantic import Field, model_validator

from service.schemas import IMAGE_HELP, Image, Reply, ReplyReport, RequestFields, Several, Text, missing
from service.tasks.base import EXAMPLE_IMAGE, Task


class EmbeddingFields(RequestFields):
    """Images and texts to embed, at least one of either."""

    images: Several[Image] | None = Field(None, description=f"pictures: {IMAGE_HELP}")
    texts: Several[Text] | None = Field(None, description="texts, each embedded alone")

    @model_validator(mode="after")
    def _check_not_empty(self) -> "EmbeddingFields":
        if self.images is None and self.texts is None:
            raise missing("images", "texts")
        return self

    def texts_read(self) -> list[str]:
        return self.texts or []


class EmbeddingReply(Reply):
    """Unit vectors in the request's order; their dot product is the cosine."""

    images: list[list[float]]
    texts: list[list[float]]
    report: ReplyReport = None


EMBEDDINGS = Task(
    name="embeddings",
    path="/v1/embeddings",
    summary="Embed images and texts",
    description="Unit vectors of one space: those of a picture and of a text that fit are close.",
    fields=EmbeddingFields,
    reply=EmbeddingReply,
    examples={
        "both": {"images": [EXAMPLE_IMAGE], "texts": ["a red circle and a blue square"]},
        "texts": {"texts": ["a red circle"]},
    },
)
