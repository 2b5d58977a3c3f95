"""The Python SDK 2.x as a client of the matrix, in both eras, and HTTP+SSE."""

import math
import sys
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "matrix"))

import anyio
import httpx2
import mcp_types as types
from client import LIMIT, Heard, expect, main, pages
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ResourcesListChanged, ResourceUpdated, ToolsListChanged

# The session era's subscriptions, logging and sampling are deprecated, and still have to work.
warnings.simplefilter("ignore")

LOG_LEVEL = "io.modelcontextprotocol/logLevel"


class Peer:
    error = MCPError

    def __init__(self, heard: Heard, stateless: bool) -> None:
        self.heard = heard
        self.stateless = stateless
        self.client: Client
        self.revision = ""

    async def elicit(self, _context: Any, params: Any) -> Any:
        self.heard.questions.append(params.message)
        return types.ElicitResult(action="accept", content=self.heard.content)

    async def sample(self, _context: Any, params: Any) -> Any:
        content = params.messages[0].content
        self.heard.prompts.append((content[0] if isinstance(content, list) else content).text)
        answer = types.TextContent(type="text", text="waffle")
        return types.CreateMessageResult(role="assistant", content=answer, model="checker")

    async def roots(self, _context: Any) -> Any:
        return types.ListRootsResult(roots=[types.Root(uri="file:///waffles", name="waffles")])

    async def log(self, params: Any) -> None:
        self.heard.log(params.data)

    async def message(self, message: Any) -> None:
        match message:
            case types.ResourceUpdatedNotification(params=params):
                self.heard.updates.append(str(params.uri))
            case types.ToolListChangedNotification():
                self.heard.changes.append("tools")
            case types.ResourceListChangedNotification():
                self.heard.changes.append("resources")

    def failed(self, result: Any) -> bool:
        return result.is_error is True

    def code(self, error: MCPError) -> int:
        return error.code

    async def call(self, name: str, arguments: Any, progress: Any = None, level: Any = None) -> Any:
        meta = {LOG_LEVEL: level} if self.stateless and level else None
        return await self.client.call_tool(name, arguments, progress_callback=progress, meta=meta)

    async def cancel(self, name: str, arguments: Any, wait: Callable[[], Awaitable[None]]) -> None:
        # A cancelled scope is how this SDK cancels a call: it sends the notification in the session era and closes
        # the stream in the stateless one.
        async with anyio.create_task_group() as group:
            group.start_soon(self.client.call_tool, name, arguments)
            await wait()
            group.cancel_scope.cancel()

    async def set_level(self, level: Any) -> None:
        if not self.stateless:
            await self.client.set_logging_level(level)

    async def tools(self) -> Any:
        return await pages("tools", lambda cursor: self.client.list_tools(cursor=cursor, cache_mode="bypass"))

    async def resources(self) -> Any:
        return await pages("resources", lambda cursor: self.client.list_resources(cursor=cursor, cache_mode="bypass"))

    async def templates(self) -> Any:
        def page(cursor: str | None) -> Any:
            return self.client.list_resource_templates(cursor=cursor, cache_mode="bypass")

        return [template.uri_template for template in await pages("resource_templates", page)]

    async def prompts(self) -> Any:
        return await pages("prompts", lambda cursor: self.client.list_prompts(cursor=cursor, cache_mode="bypass"))

    async def read(self, uri: str) -> Any:
        return await self.client.read_resource(uri, cache_mode="bypass")

    async def prompt(self, name: str, arguments: Any) -> Any:
        return await self.client.get_prompt(name, arguments)

    async def complete(self, ref: dict[str, Any], argument: dict[str, str]) -> Any:
        kind = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
        return await self.client.complete(kind.model_validate(ref), argument)

    @asynccontextmanager
    async def watch(self, uri: str | None = None, kind: str | None = None) -> Any:
        if not self.stateless:
            # Word of changed lists comes by itself.
            if uri:
                await self.client.subscribe_resource(uri)
            yield
            if uri:
                await self.client.unsubscribe_resource(uri)
            return
        wanted = {"resource_subscriptions": [uri]} if uri else {f"{kind}_list_changed": True}
        async with self.client.listen(**wanted) as subscription, anyio.create_task_group() as group:

            async def hear() -> None:
                async for event in subscription:
                    match event:
                        case ResourceUpdated(uri=updated):
                            self.heard.updates.append(str(updated))
                        case ToolsListChanged():
                            self.heard.changes.append("tools")
                        case ResourcesListChanged():
                            self.heard.changes.append("resources")

            group.start_soon(hear)
            yield
            group.cancel_scope.cancel()


@asynccontextmanager
async def open_peer(target: dict[str, Any], heard: Heard) -> Any:
    stateless = target["era"] == "stateless"
    peer = Peer(heard, stateless)
    headers = {"Authorization": f"Bearer {target['token']}"} if target["token"] else {}
    async with AsyncExitStack() as stack:
        limit = stack.enter_context(anyio.fail_after(LIMIT))
        if target["transport"] == "sse":
            transport = sse_client(target["url"], headers)
        else:
            http = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300))
            await stack.enter_async_context(http)
            transport = streamable_http_client(target["url"], http_client=http)
        client = Client(
            transport,
            mode="2026-07-28" if stateless else "legacy",
            sampling_callback=peer.sample,
            elicitation_callback=peer.elicit,
            list_roots_callback=peer.roots,
            logging_callback=peer.log,
            message_handler=peer.message,
            read_timeout_seconds=LIMIT,
        )
        peer.client = await stack.enter_async_context(client)
        if stateless:
            # A pinned client takes everything for granted; this one asks.
            found = await peer.client.session.send_discover("2026-07-28")
            expect("2026-07-28" in found["supportedVersions"], "the revision is offered", found)
            expect("tools" in found["capabilities"], "the server says what it can do", found)
        peer.revision = peer.client.protocol_version
        limit.deadline = math.inf
        yield peer


main("py-v2", open_peer)
