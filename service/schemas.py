"""What goes in and out over HTTP: fields, limits, examples. The generated docs are made of this."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ReportLevel = Literal["none", "summary", "full"]

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
Candidate = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]

# A red disc and a blue square on white, 48 x 48, 191 bytes: the JSON example works as it stands.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAADAAAAAwAgMAAAAqbBEUAAAADFBMVEX////cKCgoUMgAAAC8azABAAAAbklEQVR42r3QsQ2DQAyF4Y/LDUBDn1EY"
    "IQ1SZswALEXDAChJYe4QUToQT7Ll388ubM5WN6xFouk9KmRyhZamQi+CFN22OJtSLOd/zmFYEOnX+cAMbkx3xjI2C5fEUvb3P9hpPdiL9/PsE66B"
    "w/oCLPcN6xB5iH8AAAAASUVORK5CYII="
)
EXAMPLE_QUESTION = "what color is the circle?"
EXAMPLE_CANDIDATES = ["red", "blue", "green"]


class ReportQuery(BaseModel):
    """The one query parameter; the field `report` of the body says the same."""

    model_config = ConfigDict(extra="forbid")

    report: ReportLevel | None = Field(None, description="how much of the report to send; default: summary")


class VqaFields(BaseModel):
    """A question about one image. JSON and multipart carry the same fields under the same rules."""

    model_config = ConfigDict(extra="forbid")

    image: str | bytes = Field(description="the picture: base64, a data: URL, or (multipart) a file")
    question: Text = Field(description="what to ask of the picture")
    candidates: list[Candidate] | None = Field(
        None, min_length=1, description="answers to rank; without them one is generated"
    )
    num_beams: int = Field(1, ge=1, le=16, description="beams of the generated answer; 1 is greedy")
    model: str | None = Field(None, max_length=200, description="which model; the default one if left out")
    report: ReportLevel | None = Field(None, description="how much of the report to send; default: summary")


class RankedCandidate(BaseModel):
    """One candidate answer; `score` is its mean token log-probability."""

    candidate: str
    score: float


class BranchSummary(BaseModel):
    """One branch in a summary report."""

    token_density: float = Field(description="mean over blocks of kept / dense")


class BranchReport(BranchSummary):
    """One branch in a full report: counts of tokens, an entry a block, class token left out."""

    tokens_in: list[int] = Field(description="entering the block")
    needed: list[int] = Field(description="needed by this request")
    kept: list[int] = Field(description="kept by the block")


class DifficultyReport(BaseModel):
    """The share of its tokens that a request needed, from 0 to 1."""

    predicted: float | None = Field(description="null until there is a predictor")
    measured: float | None = Field(description="null where nothing was pruned")


class SecondsReport(BaseModel):
    """Where the time went, in seconds."""

    queue: float = Field(description="waiting for a preprocessing thread and for the batch to start")
    decode: float = Field(description="reading the image: header check, base64, pixels, rotation, colours")
    preprocess: float = Field(description="resizing and normalising")
    inference: float = Field(description="the batch's forward pass and decoding")
    postprocess: float = Field(description="this request's share of turning tokens into text")


class Report(BaseModel):
    """What the answer cost. FLOPs are floating-point operations, two per multiply-add, pads left out."""

    request_id: str
    model: str
    batch_size: int
    keep_mode: str
    prune_temperature: float = Field(description="0 where nothing was pruned")
    difficulty: DifficultyReport
    vision: BranchReport | BranchSummary
    text: BranchReport | BranchSummary
    token_density: float = Field(
        description="tokens kept / tokens of a dense run, all blocks of both branches"
    )
    flops: int = Field(description="spent on this request, decoding included")
    dense_flops: int = Field(description="the same request and answer, unpruned")
    flops_ratio: float = Field(description="flops / dense_flops")
    flops_reduction: float = Field(description="1 - flops_ratio")
    seconds: SecondsReport


class VqaReply(BaseModel):
    """The answer; `ranked` holds all candidates, best first, when there were any."""

    answer: str
    score: float = Field(description="mean token log-probability")
    ranked: list[RankedCandidate] | None
    report: Report | None = Field(description="null with report=none")


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


def vqa_request_body() -> dict[str, Any]:
    """The OpenAPI request body of POST /v1/vqa: one schema in its two forms, each with a working example."""
    schema = VqaFields.model_json_schema()
    as_text = {"type": "string", "description": schema["properties"]["image"]["description"]}
    as_file = as_text | {"format": "binary"}
    example = {"question": EXAMPLE_QUESTION, "candidates": EXAMPLE_CANDIDATES}
    form_properties = {name: _without_null(field) for name, field in schema["properties"].items()}
    form_properties["image"] = as_file
    for name, value in example.items():
        form_properties[name]["example"] = value
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": schema | {"properties": form_properties},
                "encoding": {"candidates": {"style": "form", "explode": True}},  # repeated parts, no commas
            },
            "application/json": {
                "schema": schema | {"properties": schema["properties"] | {"image": as_text}},
                "examples": {
                    "generate": {
                        "summary": "let the model answer",
                        "value": {"image": EXAMPLE_IMAGE, "question": EXAMPLE_QUESTION},
                    },
                    "rank": {
                        "summary": "rank candidate answers, with the full report",
                        "value": {"image": EXAMPLE_IMAGE, **example, "report": "full"},
                    },
                },
            },
        },
    }


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """The field of a form: what is left out is not sent, so there is no null."""
    plain = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    return plain | (kinds[0] if kinds else {})
