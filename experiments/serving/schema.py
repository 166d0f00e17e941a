"""What a chat request may say: OpenAI's fields, and those of time and frames beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_MAX_TEXT = 20_000  # characters of a text


class Url(BaseModel):
    """Where a medium is: the id of an uploaded file, a data: URL, a path below the media root, or a URL."""

    url: str = Field(min_length=1)


class TextPart(BaseModel):
    """A piece of text."""

    type: Literal["text"]
    text: str = Field(max_length=_MAX_TEXT)


class VideoPart(BaseModel):
    """A video."""

    type: Literal["video_url"]
    video_url: Url


class ImagePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: Url


Part = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=_MAX_TEXT)] | Annotated[list[Part], Field(max_length=64)]

    def parts(self) -> list[Any]:
        """Returns the content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content

    def text(self) -> str:
        """Returns the texts of the content, a line each."""
        return "\n".join(part.text for part in self.parts() if isinstance(part, TextPart))


class StreamOptions(BaseModel):
    """What a stream holds besides."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request of /v1/chat/completions; other fields of OpenAI's are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=200)
    messages: list[Message] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=8)
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
        | None
    ) = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI's: which part of the video is shown, how densely, and with how many frames.
    fps: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False)
    start_s: Seconds = 0.0
    end_s: Seconds | None = None
    max_frames: int | None = Field(None, ge=1, le=100_000)
    verify: Literal["full", "cheap"] | None = None  # see `o3jax.Model.answer`


class Session(BaseModel):
    """What a browser signs in with."""

    key: str = Field(max_length=1000)
