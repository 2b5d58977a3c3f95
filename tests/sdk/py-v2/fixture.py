"""Fixture servers of the Python SDK 2.x: one with sessions, and a stateless one.

python fixture.py prints {"urls": {"2025-11-25": …, "2026-07-28": …}}
"""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "matrix"))

import anyio
import mcp_types as types
from fixture import CAPABILITIES, LEVELS, Fixture, Refusal, World, pinned, refused, serve
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated, ToolsListChanged
from mcp.shared.message import ServerMessageMetadata

# The session era's logging and subscriptions are deprecated, and still have to work.
warnings.simplefilter("ignore")

ASKS = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


class Io:
    """What the SDK gives to one request."""

    def __init__(self, context: Any, params: Any, levels: dict[Any, str], stateless: bool) -> None:
        self.context = context
        self.params = params
        self.levels = levels
        self.stateless = stateless

    async def progress(self, done: int, total: int) -> None:
        await self.context.session.report_progress(done, total)

    async def log(self, level: Any, data: str) -> None:
        # The SDK itself keeps to the level that a stateless request asks for.
        wanted = self.levels.get(self.context.session._connection, "debug")
        if LEVELS.index(level) >= LEVELS.index(wanted):
            await self.context.session.send_log_message(level, data, related_request_id=self.context.request_id)

    async def ask(self, method: str, params: dict[str, Any], finish: Any) -> Any:
        request, answer = ASKS[method]
        asked = request.model_validate({"method": method, "params": params})
        if self.stateless:
            result = (self.params.input_responses or {}).get("asked")
            if result is None:
                return types.InputRequiredResult(input_requests={"asked": asked})
        else:
            metadata = ServerMessageMetadata(related_request_id=self.context.request_id)
            result = await self.context.session.send_request(asked, answer, metadata=metadata)
        return finish(result.model_dump(mode="json", by_alias=True, exclude_none=True))


def build(world: World, stateless: bool) -> Server[Any]:
    fixture = Fixture(world, not_found=-32602 if stateless else -32002)
    levels: dict[Any, str] = {}
    subscribed: dict[Any, set[str]] = {}

    def listens(connection: Any) -> None:
        if stateless or connection in subscribed:
            return
        subscribed[connection] = set()

        async def hear(kind: str, uri: str) -> None:
            if kind == "tools":
                await connection.send_tool_list_changed()
            elif uri in subscribed[connection]:
                await connection.send_resource_updated(uri)

        world.listeners[connection] = hear

    def answers(result: Any, answer: Any) -> Any:
        async def handle(context: Any, params: Any) -> Any:
            listens(context.session._connection)
            try:
                found = await answer(params, context)
            except Refusal as refusal:
                raise MCPError(refusal.code, refusal.message) from refusal
            return result.model_validate(found) if isinstance(found, dict) else found

        return handle

    async def call(params: Any, context: Any) -> Any:
        return await fixture.call(params.name, params.arguments or {}, Io(context, params, levels, stateless))

    async def set_level(params: Any, context: Any) -> Any:
        levels[context.session._connection] = params.level
        return {}

    async def subscribe(params: Any, context: Any) -> Any:
        subscribed[context.session._connection].add(str(params.uri))
        return {}

    async def unsubscribe(params: Any, context: Any) -> Any:
        subscribed[context.session._connection].discard(str(params.uri))
        return {}

    def plain(function: Any) -> Any:
        async def answer(params: Any, _context: Any) -> Any:
            return function(params)

        return answer

    more: dict[str, Any] = {}
    if stateless:
        bus = InMemorySubscriptionBus()

        async def publish(kind: str, uri: str) -> None:
            await bus.publish(ToolsListChanged() if kind == "tools" else ResourceUpdated(uri=uri))

        world.listeners[bus] = publish
        more["on_subscriptions_listen"] = ListenHandler(bus)
    else:
        more["on_set_logging_level"] = answers(types.EmptyResult, set_level)
        more["on_subscribe_resource"] = answers(types.EmptyResult, subscribe)
        more["on_unsubscribe_resource"] = answers(types.EmptyResult, unsubscribe)
    server: Server[Any] = Server(
        "waffles-fixture-py-v2",
        version="1.0.0",
        instructions="Call echo.",
        on_list_tools=answers(types.ListToolsResult, plain(lambda _: fixture.tools())),
        on_call_tool=answers(types.CallToolResult, call),
        on_list_resources=answers(types.ListResourcesResult, plain(lambda _: fixture.resources())),
        on_list_resource_templates=answers(types.ListResourceTemplatesResult, plain(lambda _: fixture.templates())),
        on_read_resource=answers(types.ReadResourceResult, plain(lambda p: fixture.read(str(p.uri)))),
        on_list_prompts=answers(types.ListPromptsResult, plain(lambda _: fixture.prompts())),
        on_get_prompt=answers(types.GetPromptResult, plain(lambda p: fixture.prompt(p.name, p.arguments))),
        on_completion=answers(
            types.CompleteResult, plain(lambda p: fixture.complete(p.ref.model_dump(), p.argument.model_dump()))
        ),
        **more,
    )
    # The SDK derives capabilities from the handlers; these are all there.
    server.get_capabilities = lambda *_, **__: types.ServerCapabilities.model_validate(CAPABILITIES)
    return server


def of_one_era(app: Any, stateless: bool) -> Any:
    """The SDK serves both eras at one address; a server of one revision refuses the other as such servers do."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        version = dict(scope["headers"]).get(b"mcp-protocol-version", b"").decode()
        if (version == "2026-07-28") == stateless:
            await app(scope, receive, send)
        elif stateless:
            supported = {"supported": ["2026-07-28"], "requested": version}
            await refused(400, -32022, "Unsupported protocol version", supported)(scope, receive, send)
        elif version > "2025-11-25":
            await refused(400, -32000, "Bad Request: Unsupported protocol version")(scope, receive, send)
        else:
            await app(scope, receive, send)

    return wrapped


doors: dict[str, Any] = {}
contexts: list[Any] = []
for revision in ("2025-11-25", "2026-07-28"):
    stateless = revision == "2026-07-28"
    manager = StreamableHTTPSessionManager(build(World(), stateless))
    inner = manager.handle_request if stateless else pinned(manager.handle_request, revision)
    doors[revision] = of_one_era(inner, stateless)
    contexts.append(manager.run())

anyio.run(serve, doors, {name: f"/{name}/mcp" for name in doors}, contexts)
