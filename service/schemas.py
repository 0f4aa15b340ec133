"""What every route takes and gives over HTTP beside its own: choices of model and cost, report, error."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from service.controller import Quality, Reason

ReportLevel = Literal["none", "summary", "full"]

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
ShortText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Image = str | bytes
IMAGE_FIELDS = ("image", "images")

Item = TypeVar("Item")
MAX_ITEMS = 1000  # of any list, and parts of a form, whatever the settings allow
# The bound is pydantic's too: it makes an error of each bad item, and a body has room for millions.
Several = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]

IMAGE_HELP = "base64, a data: URL, an http(s) URL where the operator allows it, or (multipart) a file"


class ReportQuery(BaseModel):
    """The one query parameter; the field `report` of the body says the same."""

    model_config = ConfigDict(extra="forbid")

    report: ReportLevel | None = Field(None, description="how much of the report to send; default: summary")


class RequestFields(BaseModel):
    """What every task takes. JSON and multipart carry the same fields under the same rules.

    A subclass has `image`, `images`, or both, and says what it asks of them.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=200, description="which model; the task's first if left out")
    quality: Quality | None = Field(
        None, description="exact: no pruning; balanced: the operator's target, the default; fast: the least"
    )
    flops_target: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="operations wanted, spent / dense; instead of `quality`",
    )
    priority: int = Field(
        0, ge=-5, le=5, description="each step counts as having come a second earlier, or later below 0"
    )
    report: ReportLevel | None = Field(None, description="how much of the report to send; default: summary")

    @model_validator(mode="after")
    def _check_one_target(self) -> "RequestFields":
        if self.quality is not None and self.flops_target is not None:
            raise conflict("quality", "flops_target")
        return self

    def pictures(self) -> list[tuple[str, Image]]:
        """Every image in its order, each with the name that an error calls it by."""
        one, many = getattr(self, "image", None), getattr(self, "images", None)
        single = [] if one is None else [("image", one)]
        return single + [(f"images.{place}", image) for place, image in enumerate(many or ())]

    def texts_read(self) -> list[str]:
        """The texts that the model reads, in their order."""
        return []

    def task_fields(self) -> dict[str, Any]:
        """What is the task's own, images left out."""
        return self.model_dump(exclude={*IMAGE_FIELDS, *RequestFields.model_fields})


def conflict(first: str, second: str) -> PydanticCustomError:
    """Two fields are given that exclude each other."""
    return PydanticCustomError(
        "conflicting_fields",
        "{first} and {second} exclude each other",
        {"first": first, "second": second, "param": second},
    )


def missing(first: str, second: str) -> PydanticCustomError:
    """One of two fields is needed, and neither is given."""
    return PydanticCustomError(
        "missing_field",
        "{first} or {second} is required",
        {"first": first, "second": second, "param": first},
    )


class BranchSummary(BaseModel):
    """One branch in a summary report: all images of a request, or all its texts, together."""

    token_density: float = Field(description="mean over blocks of kept / dense")


class BranchReport(BranchSummary):
    """One branch in a full report: sums over its images or texts, an entry a block, class tokens left out."""

    tokens_in: list[int] = Field(description="entering the block")
    needed: list[int] = Field(description="needed by this request")
    kept: list[int] = Field(description="kept by the block")


class DifficultyReport(BaseModel):
    """The share of its tokens that a request needed, from 0 to 1."""

    predicted: float | None = Field(description="before it ran; null until enough has been measured")
    measured: float | None = Field(description="null where nothing was pruned")


class TargetReport(BaseModel):
    """Operations wanted and aimed at, each spent / dense; held in the mean over many requests."""

    asked: float = Field(description="by this request, or by the operator where it did not say")
    served: float = Field(description="what was aimed at")
    reason: Reason | None = Field(
        description="why they differ: the model goes no lower, the server was overloaded, its pruning method "
        "has one setting, the operator has fixed one, or nothing tells what a setting would cost"
    )


class SecondsReport(BaseModel):
    """Where the time went, in seconds."""

    queue: float = Field(description="waiting for a preprocessing thread and for the batch to start")
    decode: float = Field(description="reading the images: header check, base64, pixels, rotation, colours")
    preprocess: float = Field(description="resizing, normalising, features of difficulty")
    inference: float = Field(description="the batch's forward pass and decoding")
    postprocess: float = Field(description="this request's share of turning tokens into text")


class Report(BaseModel):
    """What the answer cost. FLOPs are floating-point operations, two per multiply-add, pads left out."""

    request_id: str
    model: str
    batch_size: int
    keep_mode: str
    prune_temperature: float = Field(description="0 where nothing was pruned")
    flops_target: TargetReport
    difficulty: DifficultyReport
    vision: BranchReport | BranchSummary | None = Field(description="null where no image was sent")
    text: BranchReport | BranchSummary | None = Field(description="null where the model encodes no text")
    token_density: float = Field(
        description="tokens kept / tokens of a dense run, all blocks of all branches"
    )
    flops: int = Field(description="spent on this request, decoding included")
    dense_flops: int = Field(description="the same request and answer, unpruned")
    flops_ratio: float = Field(description="flops / dense_flops")
    flops_reduction: float = Field(description="1 - flops_ratio")
    seconds: SecondsReport


class Reply(BaseModel):
    """What a task answers; its last field is `report`."""


ReplyReport = Annotated[Report | None, Field(description="null with report=none")]


class ErrorDetail(BaseModel):
    """Every error of every route: `code` is a fixed string, `param` the field at fault."""

    type: str
    code: str
    message: str
    param: str | None
    request_id: str


class ErrorReply(BaseModel):
    """The one shape of errors."""

    error: ErrorDetail
