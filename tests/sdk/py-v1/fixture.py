"""Fixture servers of the Python SDK 1.x, one for each revision that it speaks, and one without sessions that
answers with JSON only.

python fixture.py prints {"urls": {"2024-11-05": …, "2025-03-26": …, "2025-06-18": …, "2025-11-25": …, "json": …}}
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "matrix"))

import anyio
import mcp.types as types
from fixture import CAPABILITIES, LEVELS, Fixture, Refusal, World, pinned, refused, serve
from mcp import McpError
from mcp.server.lowlevel import Server
from mcp.server.models import InitializationOptions
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.message import ServerMessageMetadata

ANSWERS = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


class Io:
    """What the SDK gives to one request."""

    def __init__(self, context: Any, levels: dict[Any, str]) -> None:
        self.context = context
        self.levels = levels

    async def progress(self, done: int, total: int) -> None:
        if self.context.meta and self.context.meta.progressToken is not None:
            token, related = self.context.meta.progressToken, str(self.context.request_id)
            await self.context.session.send_progress_notification(token, done, total, related_request_id=related)

    async def log(self, level: Any, data: str) -> None:
        if LEVELS.index(level) >= LEVELS.index(self.levels.get(self.context.session, "debug")):
            await self.context.session.send_log_message(level, data, related_request_id=self.context.request_id)

    async def ask(self, method: str, params: dict[str, Any], finish: Any) -> Any:
        request, answer = ANSWERS[method]
        asked = types.ServerRequest(request.model_validate({"method": method, "params": params}))
        metadata = ServerMessageMetadata(related_request_id=self.context.request_id)
        result = await self.context.session.send_request(asked, answer, metadata=metadata)
        return finish(result.model_dump(mode="json", by_alias=True, exclude_none=True))


def build(world: World, revision: str) -> Server:
    server = Server("waffles-fixture-py-v1", version="1.0.0", instructions="Call echo.")
    fixture = Fixture(world, elicits=revision >= "2025-06-18")
    levels: dict[Any, str] = {}
    subscribed: dict[Any, set[str]] = {}

    def listens(session: Any) -> None:
        if session in subscribed:
            return
        subscribed[session] = set()

        async def hear(kind: str, uri: str) -> None:
            if kind == "tools":
                await session.send_tool_list_changed()
            elif uri in subscribed[session]:
                await session.send_resource_updated(uri)

        world.listeners[session] = hear

    def on(request: Any, result: Any, answer: Any) -> None:
        async def handle(given: Any) -> types.ServerResult:
            context = server.request_context
            listens(context.session)
            try:
                found = await answer(given.params, context)
            except Refusal as refusal:
                raise McpError(types.ErrorData(code=refusal.code, message=refusal.message)) from refusal
            return types.ServerResult(result.model_validate(found))

        server.request_handlers[request] = handle

    async def call(params: Any, context: Any) -> Any:
        return await fixture.call(params.name, params.arguments or {}, Io(context, levels))

    async def set_level(params: Any, context: Any) -> Any:
        levels[context.session] = params.level
        return {}

    async def subscribe(params: Any, context: Any) -> Any:
        subscribed[context.session].add(str(params.uri))
        return {}

    async def unsubscribe(params: Any, context: Any) -> Any:
        subscribed[context.session].discard(str(params.uri))
        return {}

    def plain(function: Any) -> Any:
        async def answer(params: Any, _context: Any) -> Any:
            return function(params)

        return answer

    on(types.ListToolsRequest, types.ListToolsResult, plain(lambda _: fixture.tools()))
    on(types.CallToolRequest, types.CallToolResult, call)
    on(types.ListResourcesRequest, types.ListResourcesResult, plain(lambda _: fixture.resources()))
    on(types.ListResourceTemplatesRequest, types.ListResourceTemplatesResult, plain(lambda _: fixture.templates()))
    on(types.ReadResourceRequest, types.ReadResourceResult, plain(lambda p: fixture.read(str(p.uri))))
    on(types.ListPromptsRequest, types.ListPromptsResult, plain(lambda _: fixture.prompts()))
    on(types.GetPromptRequest, types.GetPromptResult, plain(lambda p: fixture.prompt(p.name, p.arguments)))
    on(
        types.CompleteRequest,
        types.CompleteResult,
        plain(lambda p: fixture.complete(p.ref.model_dump(), p.argument.model_dump())),
    )
    on(types.SetLevelRequest, types.EmptyResult, set_level)
    on(types.SubscribeRequest, types.EmptyResult, subscribe)
    on(types.UnsubscribeRequest, types.EmptyResult, unsubscribe)

    # The SDK derives capabilities from the handlers, and never says that resources can be subscribed to.
    def options(*_: Any, **__: Any) -> InitializationOptions:
        return InitializationOptions(
            server_name=server.name,
            server_version="1.0.0",
            capabilities=types.ServerCapabilities.model_validate(CAPABILITIES),
            instructions=server.instructions,
        )

    server.create_initialization_options = options
    return server


def over_sse(revision: str) -> Any:
    """HTTP+SSE: a GET opens the stream, and messages are posted beside it."""
    server = build(World(), revision)
    transport = SseServerTransport(f"/{revision}/messages")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("/messages"):
            await transport.handle_post_message(scope, receive, send)
        elif scope["method"] != "GET" or not scope["path"].endswith("/sse"):
            await refused(404, -32000, "There is no such door.")(scope, receive, send)
        else:
            async with transport.connect_sse(scope, receive, send) as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())

    return pinned(app, revision)


doors: dict[str, Any] = {"2024-11-05": over_sse("2024-11-05")}
contexts: list[Any] = []
for name, revision, json in (
    ("2025-03-26", "2025-03-26", False),
    ("2025-06-18", "2025-06-18", False),
    ("2025-11-25", "2025-11-25", False),
    ("json", "2025-11-25", True),
):
    manager = StreamableHTTPSessionManager(build(World(), revision), json_response=json, stateless=json)
    door = pinned(manager.handle_request, revision)
    if json:
        # Without sessions there is no stream of the server's own.
        async def posts(scope: Any, receive: Any, send: Any, inner: Any = door) -> None:
            no_stream = refused(405, -32000, "There is no stream.")
            await (inner if scope["method"] == "POST" else no_stream)(scope, receive, send)

        doors[name] = posts
    else:
        doors[name] = door
    contexts.append(manager.run())

paths = {name: f"/{name}/{'sse' if name == '2024-11-05' else 'mcp'}" for name in doors}
anyio.run(serve, doors, paths, contexts)
