"""The bodies of requests and answers, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from openm6.search.values import MAX_ID, check_id

MAX_TEXT = 400  # characters
MAX_SEED = 2**31 - 1

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID), AfterValidator(check_id)]
Lang = Literal["en", "zh"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description="Chance; the same seed gives the same output")]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DrawRequest(Request):
    text: Text = Field(description="What to draw, in English or Chinese")
    seed: Seed = 0


class PoemRequest(Request):
    title: Text
    form: Text | None = Field(default=None, description="五绝, 七绝, 五律, 七律, 词 or 古; none: any")
    author: Text | None = Field(default=None, description="In the manner of this poet")
    seed: Seed = 0


class ContinueRequest(Request):
    text: Text = Field(description="A beginning")
    max_tokens: int = Field(100, ge=1, le=300)
    seed: Seed = 0


class ScriptRequest(Request):
    item: Id = Field(description="The id of an item of the catalogue, as it is there")
    lang: Lang = "en"
    seed: Seed = 0


class Caption(BaseModel):
    text: str
    lang: Lang


class Answer(BaseModel):
    text: str


class Item(BaseModel):
    id: str
    name: str
    attributes: dict[str, str | float | bool | None]
    picture: str | None = Field(description="Where its picture is; none where the service has none")


class FoundItem(Item):
    score: float = Field(description="What orders the hits")
    similarity: float = Field(
        description="Inner product with the query; of words, the share that is the item's; 0 for a filter alone"
    )


class Found(BaseModel):
    hits: list[FoundItem]
    order: Literal["similarity", "words", "id"] = Field(
        description="What orders the hits: likeness, words that are theirs, or (for a filter alone) their ids"
    )
    count: int | None = Field(description="Items that pass the filter, where the hits are ordered by id")
    next: str | None = Field(description="`after` of the next page, where the hits are ordered by id")


class Drawing(BaseModel):
    text: str
    seed: int
    picture: str = Field(description="data:image/png;base64,...")


class Written(BaseModel):
    text: str
    by: str = Field(description="The model that wrote it")


class FacetAbout(BaseModel):
    column: str
    kind: Literal["text", "number", "flag"]
    choices: list[str] = Field(description="All values of a column that has few")
    least: float | None = None
    most: float | None = None


class Catalogue(BaseModel):
    items: int
    reads_words: bool = Field(
        description="Whether words are compared with pictures; if not, they are matched with names and attributes"
    )
    facets: list[FacetAbout]


class About(BaseModel):
    version: str
    model: str
    writer: str | None = Field(description="The model that writes scripts; none: there is none")
    ready: bool
    doing: str
    done: int
    total: int
    problem: str | None = None
    max_upload: int = Field(description="Bytes of a request's body")
    max_pixels: int
    catalogue: Catalogue | None = Field(default=None, description="None until it is ready")
