"""Errors in OpenAI's form."""

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from dspark.errors import DSparkError, InputError, MemoryFullError, ServerError, UnknownNameError
from dspark.serve.openai.common_body import UnsupportedParameterError

BAD_REQUEST, NOT_FOUND, BUSY, FAILED = 400, 404, 503, 500
OTHER_TYPE = 415
MOST_CHARACTERS = 120  # of a client's own words in a refusal


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal has this form."""

    error: ErrorDetail


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals of an endpoint, for its OpenAPI description."""
    return {
        status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def require_json(http: Request) -> None:
    """A browser posts any other type to any address, unasked."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(OTHER_TYPE, "the content type must be application/json")


def status_of(error: Exception) -> int:
    match error:
        case UnknownNameError():
            return NOT_FOUND
        case InputError():
            return BAD_REQUEST
        case MemoryFullError() | ServerError():
            return BUSY
    return FAILED


def error_object(error: Exception) -> dict[str, Any]:
    """The body of a refusal, also sent inside a stream that has begun."""
    text = "the server failed while decoding"
    if isinstance(error, DSparkError):
        text = f"{error.message}. {error.hint}".removesuffix(". ")
    status = status_of(error)
    parameter = error.parameter if isinstance(error, UnsupportedParameterError) else None
    code = "model_not_found" if status == NOT_FOUND else None
    if parameter is not None:
        code = "unsupported_parameter"
    elif status == BAD_REQUEST and "context holds" in text:
        code = "context_length_exceeded"
    return error_body(text, status, parameter, code)


def error_body(
    message: str, status: int, parameter: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = "invalid_request_error" if status < FAILED else "server_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


async def answer_error(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_object(error), status_of(error))


async def answer_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error_body(str(error.detail), error.status_code)
    return JSONResponse(body, error.status_code, error.headers)


async def answer_invalid_body(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body, by the name of its field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse(error_body("the body is not valid JSON", BAD_REQUEST), BAD_REQUEST)
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:MOST_CHARACTERS]
    message = str(first["msg"])[:MOST_CHARACTERS]
    text = f"{place}: {message}" if place else message
    return JSONResponse(error_body(text, BAD_REQUEST, place or None), BAD_REQUEST)
