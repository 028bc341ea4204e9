"""What the endpoints take and give, as they stand in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_IMAGE = "The picture: base64 text, a data URL, or an https URL that the server was started to allow."
_VIDEO = "Instead of a picture a short video, in the same forms; it is answered for all of its frames."

Text = Annotated[str, Field(min_length=1)]
Threshold = Annotated[
    float, Field(gt=0, lt=1, description="Probability above which a pixel belongs to an object.", allow_inf_nan=False)
]
CheckPresence = Annotated[
    bool, Field(description="Ask for yes or no whether there is such a thing, and give no mask where the answer is no.")
]
MaxTokens = Annotated[int, Field(ge=1, le=2**31, description="Longest answer, in tokens; the server has a limit too.")]
MaskFormat = Annotated[
    Literal["rle", "png", "polygon"],
    Field(
        description="Masks as COCO run lengths, as PNG files in base64 (0 and 255), or as lists of outlines "
        "[x0, y0, x1, y1, ...] in pixels, whose holes are filled."
    ),
]
Box = Annotated[
    list[float], Field(min_length=4, max_length=4, description="[x0, y0, x1, y1] in pixels, ends exclusive.")
]


class RleMask(BaseModel):
    """A mask as COCO's compressed run lengths; pycocotools decodes it."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="[height, width]")]
    counts: str


class MaskedSegment(BaseModel):
    """An object and its mask."""

    id: int = Field(description="Stable within the answer.")
    phrase: str = Field(description="The words that name it; may be empty.")
    span: list[int] | None = Field(description="Start and end of the phrase in the text, in characters.")
    score: float = Field(description="The model's own estimate of the mask's IoU, 0 to 1; below 0.2 is doubtful.")
    presence: float = Field(description="Probability that the object is visible, 0 to 1.")
    box: Box | None = Field(description="Null for a video.")
    area: int | None = Field(description="Pixels; null for a video.")
    color: list[int] | None = Field(description="RGB in which this package's pictures show it.")
    mask: RleMask | str | list[list[float]] | None = Field(description="As `return` asked for; null for a video.")
    masks: list[RleMask | str | list[list[float]]] | None = Field(
        None, description="Of a video, one per frame; absent for a picture."
    )


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str = Field(description="`invalid_request_error`, `authentication_error`, `rate_limit_error`, ...")
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """The form of every error, that of OpenAI."""

    error: ErrorBody


#: What any route may answer instead, for the OpenAPI document.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": about}
    for status, about in (
        (400, "The request says what cannot be done, or beyond a limit."),
        (401, "The server has a key, and this is not it."),
        (403, "The server answers local programs only."),
        (404, "There is no such thing."),
        (408, "The request did not arrive in time."),
        (413, "The body is too large."),
        (415, "The body is neither JSON nor a form."),
        (429, "The server is busy; `Retry-After` says for how long."),
        (503, "The server is shutting down."),
        (504, "The answer took too long."),
    )
}


# -- chat --------------------------------------------------------------------------------------------------------------


class MediaUrl(BaseModel):
    """Where a picture or video is."""

    url: Text = Field(description="A data URL, or an https URL that the server was started to allow.")


class TextPart(BaseModel):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: MediaUrl


class VideoPart(BaseModel):
    """A short video, as other servers take it."""

    type: Literal["video_url"]
    video_url: MediaUrl


ContentPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """A message. User and assistant take turns; a system message is put before the first question."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: bool = Field(False, description="End with a chunk that counts tokens.")


class TextFormat(BaseModel):
    """The only format of answers."""

    type: Literal["text"]


class CompletionRequest(BaseModel):
    """A conversation about one picture or video, or about none. Other fields of OpenAI's are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tiny",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
                                {"type": "text", "text": "Please segment the yellow cloud."},
                            ],
                        }
                    ],
                }
            ]
        }
    )

    model: str = Field(description="The one that `/v1/models` names.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = Field(None, description="The newer name of `max_tokens`.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0, the default, is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = Field(
        None, description="The text ends before the first of these."
    )
    stream: bool | None = Field(None, description="Send the text while it is written; masks come in the last chunk.")
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=0, le=2**31, description="Not OpenAI's.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, allow_inf_nan=False, description="Not OpenAI's.")
    threshold: Threshold | None = Field(None, description="Not OpenAI's: probability of a mask's pixels.")
    n: Literal[1] | None = Field(None, description="One answer at a time.")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description="Not supported.")
    presence_penalty: float | None = Field(None, ge=0, le=0, description="Not supported.")
    logprobs: Literal[False] | None = Field(None, description="Not supported.")
    tools: Annotated[list[dict[str, Any]], Field(max_length=0)] | None = Field(None, description="Not supported.")
    response_format: TextFormat | None = Field(None, description="Only text.")


class AnswerMessage(BaseModel):
    """What the model said, and the objects it pointed at."""

    role: Literal["assistant"]
    content: str
    segments: list[MaskedSegment] = Field(description="Not OpenAI's; stock clients ignore it.")


class AnswerChoice(BaseModel):
    """The one answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens read and written; those of the picture count as read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """An answer, as OpenAI's `chat.completion`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: Usage


# -- masks -------------------------------------------------------------------------------------------------------------


class MediumRequest(BaseModel):
    """About one picture or short video."""

    image: Text | None = Field(None, description=_IMAGE)
    video: Text | None = Field(None, description=_VIDEO)
    max_tokens: MaxTokens | None = None


class SegmentRequest(MediumRequest):
    """What to find in a picture."""

    phrases: list[Text] = Field(
        min_length=1, description="Each is looked for by itself. With a question mark it is asked as a question."
    )
    threshold: Threshold = 0.5
    check_presence: CheckPresence = False
    zoom: bool = Field(
        False,
        description="Look again around what was found, and by tiles where nothing was found in a large picture. "
        "Pictures only.",
    )
    instances: bool = Field(
        False, description="A segment for each of the objects that a plural phrase names. Pictures only."
    )
    return_: MaskFormat = Field("rle", alias="return")


class CaptionRequest(MediumRequest):
    """A picture to describe."""

    threshold: Threshold = 0.5
    return_: MaskFormat = Field("rle", alias="return")


class DescribeRequest(BaseModel):
    """Regions of a picture to describe."""

    image: Text | None = Field(None, description=_IMAGE)
    regions: list[Box | RleMask] = Field(min_length=1, description="Boxes in pixels, or masks of the picture's size.")
    requests: list[Text] | None = Field(
        None, description="What to ask about each region; they are called region1, region2, ..."
    )
    max_tokens: MaxTokens | None = None


class PhraseAnswer(BaseModel):
    """What was found for a phrase."""

    phrase: str | None = Field(description="What was asked for; null for a caption.")
    text: str = Field(description="What the model said.")
    reason: str | None = Field(description="Why nothing was found, if so.")
    segments: list[MaskedSegment]


class SegmentReply(BaseModel):
    """What was found, phrase by phrase."""

    model: str
    size: list[int] = Field(description="[height, width] of the picture in pixels.")
    answers: list[PhraseAnswer]


class CaptionReply(BaseModel):
    """A caption whose phrases have masks."""

    model: str
    size: list[int] = Field(description="[height, width] of the picture in pixels.")
    text: str
    segments: list[MaskedSegment]


class DescribeReply(BaseModel):
    """A text for each region."""

    model: str
    descriptions: list[str]


# -- tracking ----------------------------------------------------------------------------------------------------------

ResultKind = Literal["overlay", "masks", "json", "jsonl"]


class TrackRequest(BaseModel):
    """What to follow through a video."""

    video: Text | None = Field(None, description="The video: base64 text, a data URL, or an https URL that is allowed.")
    phrases: list[Text] = Field(min_length=1)
    return_: list[ResultKind] = Field(
        default=["overlay", "jsonl"],
        alias="return",
        min_length=1,
        description="`overlay`: an mp4 with the masks drawn in. `masks`: a zip of palette PNGs. `json`: YouTube-VOS. "
        "`jsonl`: a line per frame.",
    )
    threshold: Threshold = 0.5
    check_presence: CheckPresence = False
    ask_every: Annotated[int, Field(ge=2, le=2**31)] | Literal["scene"] | None = Field(
        None,
        description="Show the model key frames of every so many frames, or of every scene between two cuts, so that "
        "what comes late or comes back is found; else it sees key frames of the whole video, once.",
    )
    max_tokens: MaxTokens | None = None
    stride: int = Field(1, ge=1, le=2**31, description="Take every n-th frame.")
    fps: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False, description="Take so many frames a second.")
    start: float | None = Field(None, ge=0, le=10**6, allow_inf_nan=False, description="Seconds to begin at.")
    end: float | None = Field(None, gt=0, le=10**6, allow_inf_nan=False, description="Seconds to stop before.")
    max_frames: int | None = Field(None, ge=1, le=2**31, description="Take at most so many frames.")


class ResultFile(BaseModel):
    """A file of a job that is done."""

    kind: ResultKind
    url: str = Field(description="Its path on this server.")
    bytes: int


class JobReply(BaseModel):
    """A tracking job."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    phrases: list[str]
    created: float = Field(description="Seconds since 1970, as the next two.")
    started: float | None
    finished: float | None
    expires: float | None = Field(description="When its results go.")
    frames_done: int
    frames_total: int
    seconds_left: float | None = Field(description="Estimated, once the first frames are done.")
    error: str | None
    note: str | None = Field(description="What a restart of the server meant for it.")
    reasons: dict[str, str] = Field(description="For each phrase that nothing was followed for, why.")
    results: list[ResultFile]


class ModelCard(BaseModel):
    """The model that this server has."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    capabilities: dict[str, Any] = Field(description="Not OpenAI's: what it can do, and this server's limits.")


class ModelList(BaseModel):
    """The models of this server: one."""

    object: Literal["list"]
    data: list[ModelCard]
