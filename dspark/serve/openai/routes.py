"""OpenAI's endpoints."""

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from starlette.requests import Request as HttpRequest

from dspark.round_records import VERSION
from dspark.serve.openai.answering import respond, send
from dspark.serve.openai.errors import described, require_json
from dspark.serve.openai.logprobs import Json
from dspark.serve.openai.requests import ChatBody, CompletionBody
from dspark.serve.openai.responding import streamed, whole
from dspark.serve.openai.responses import ResponseWriter
from dspark.serve.openai.responses_body import ResponsesBody
from dspark.serve.openai.shapes import ChatShape, CompletionShape
from dspark.serve.openai.tool_use import answer_grammar
from dspark.serve.serving import Serving

COMPLETION_TOKENS = 16  # OpenAI's default for a completion
TEXT = {"type": "string"}
SERVER_SENT: Json = {"type": "object", "properties": {"event": TEXT, "data": TEXT}}
ANSWER: Json = {
    "description": "The answer, whole or as a stream of events",
    "content": {"application/json": {}, "text/event-stream": {"schema": SERVER_SENT}},
}


def openai_routes(serving: Serving) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=described(401, 404))
    session = serving.session
    posted: Json = {
        "dependencies": [Depends(require_json)],
        "responses": {200: ANSWER, **described(400, 413, 415, 429, 500, 503)},
    }

    @router.get("/models")
    async def models() -> Json:
        return {"object": "list", "data": [model_object(serving)]}

    @router.get("/models/{model:path}")
    async def model(model: str) -> Json:
        serving.check_model(model)
        return model_object(serving)

    @router.post("/chat/completions", response_model=None, **posted)
    async def chat_completions(http: HttpRequest, body: ChatBody) -> Response:
        serving.check_model(body.model)
        messages, use = [message.plain() for message in body.messages], body.tool_use()
        prompt_ids, grammar = await serving.beside(
            lambda: (
                session.encode_chat(messages, use.offered, effort=body.effort(session)),
                answer_grammar(session, use, body.answer_schema()),
            )
        )
        defaults = session.sampling_defaults
        requests = body.requests(
            prompt_ids, defaults, None, grammar=grammar, calls_tools=bool(use.offered)
        )
        token_bytes = None if body.num_logprobs is None else session.token_bytes
        shape = ChatShape(serving.name, reader=use.reader(session), token_bytes=token_bytes)
        return await respond(serving, http, body, requests, shape)

    @router.post("/completions", response_model=None, **posted)
    async def completions(http: HttpRequest, body: CompletionBody) -> Response:
        serving.check_model(body.model)
        prompts = await serving.beside(lambda: [_ids(serving, each) for each in body.prompts()])
        requests = [
            request
            for prompt_ids in prompts
            for request in body.requests(
                prompt_ids, session.sampling_defaults, COMPLETION_TOKENS, is_raw=True
            )
        ]
        token_bytes = None if body.num_logprobs is None else session.token_bytes
        shape = CompletionShape(serving.name, token_bytes=token_bytes)
        return await respond(serving, http, body, requests, shape)

    @router.post("/responses", response_model=None, **posted)
    async def responses(http: HttpRequest, body: ResponsesBody) -> Response:
        serving.check_model(body.model)
        body.check()
        messages, use = body.messages(), body.tool_use()
        prompt_ids, grammar = await serving.beside(
            lambda: (
                session.encode_chat(messages, use.offered, effort=body.effort(session)),
                answer_grammar(session, use, body.answer_schema()),
            )
        )
        requests = body.requests(
            *(prompt_ids, session.sampling_defaults, None),
            grammar=grammar,
            calls_tools=bool(use.offered),
        )
        writer = ResponseWriter(
            body,
            serving.name,
            requests[0].sampling,
            reader=use.reader(session),
            token_bytes=None if body.num_logprobs is None else session.token_bytes,
        )
        answer = streamed(serving, requests, writer) if body.stream else None
        return await send(serving, http, requests, answer or whole(serving, requests, writer))

    return router


def _ids(serving: Serving, prompt: str | list[int]) -> tuple[int, ...]:
    return tuple(prompt if isinstance(prompt, list) else serving.session.encode(prompt))


def model_object(serving: Serving) -> Json:
    return {
        "id": serving.name,
        "object": "model",
        "created": serving.started_at,
        "owned_by": "dspark",
        "max_model_len": serving.session.context_limit,
        "dspark": {"rounds": VERSION, "has_drafter": serving.session.has_drafter},
    }
