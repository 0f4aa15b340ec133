"""Retrieval: texts ranked for an image, or images for a text."""

from pydantic import BaseModel, Field, model_validator

from service.schemas import (
    IMAGE_HELP,
    Image,
    Reply,
    ReplyReport,
    RequestFields,
    Several,
    Text,
    conflict,
    missing,
)
from service.tasks.base import EXAMPLE_IMAGE, Task


class RankFields(RequestFields):
    """An image and texts, or a text and images: the several are the candidates."""

    image: Image | None = Field(None, description=f"the picture that `texts` are ranked for: {IMAGE_HELP}")
    texts: Several[Text] | None = Field(None, description="candidate texts for `image`")
    text: Text | None = Field(None, description="the text that `images` are ranked for")
    images: Several[Image] | None = Field(None, description="candidate pictures for `text`")
    rerank: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="how many of the most similar to match as well (BLIP); all if left out, 0 is none",
    )

    @model_validator(mode="after")
    def _check_one_against_several(self) -> "RankFields":
        for one, several in (("image", "images"), ("text", "texts")):
            if getattr(self, one) is not None and getattr(self, several) is not None:
                raise conflict(one, several)
            if getattr(self, one) is None and getattr(self, several) is None:
                raise missing(one, several)
        if self.image is not None and self.text is not None:
            raise conflict("image", "text")
        if self.images is not None and self.texts is not None:
            raise conflict("images", "texts")
        return self

    def texts_read(self) -> list[str]:
        return self.texts or ([] if self.text is None else [self.text])


class RankedItem(BaseModel):
    """One candidate."""

    index: int = Field(description="its place in the request, from 0")
    rank: int = Field(description="1 is the best")
    similarity: float = Field(description="cosine of the two embeddings (ITC)")
    match_score: float | None = Field(description="probability of a match (BLIP's ITM); null if not matched")


class RankReply(Reply):
    """All candidates, best first."""

    ranked: list[RankedItem]
    report: ReplyReport = None


RETRIEVAL = Task(
    name="retrieval",
    path="/v1/retrieval/rank",
    summary="Rank texts for an image, or images for a text",
    description=(
        "Compares by embedding (BLIP or CLIP), then matches the most similar ones (BLIP). "
        "The one image or text is decoded and encoded once, however many it is compared with."
    ),
    fields=RankFields,
    reply=RankReply,
    examples={
        "texts for an image": {
            "image": EXAMPLE_IMAGE,
            "texts": ["a red circle and a blue square", "two green triangles"],
        },
        "images for a text": {"text": "a red circle", "images": [EXAMPLE_IMAGE, EXAMPLE_IMAGE]},
    },
)
