"""The Python SDK 1.x as a client of the matrix: sessions over Streamable HTTP, or HTTP+SSE."""

import math
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "matrix"))

import anyio
import httpx
import mcp.types as types
from client import LIMIT, Heard, main, pages
from mcp import ClientSession, McpError
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import AnyUrl, FileUrl


class Peer:
    error = McpError

    def __init__(self, heard: Heard) -> None:
        self.heard = heard
        self.session: ClientSession
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
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl("file:///waffles"), name="waffles")])

    async def log(self, params: Any) -> None:
        self.heard.log(params.data)

    async def message(self, message: Any) -> None:
        if isinstance(message, types.ServerNotification):
            match message.root:
                case types.ResourceUpdatedNotification(params=params):
                    self.heard.updates.append(str(params.uri))
                case types.ToolListChangedNotification():
                    self.heard.changes.append("tools")
                case types.ResourceListChangedNotification():
                    self.heard.changes.append("resources")

    def failed(self, result: Any) -> bool:
        return result.isError is True

    def code(self, error: McpError) -> int:
        return error.error.code

    async def call(self, name: str, arguments: Any, progress: Any = None, level: Any = None) -> Any:
        return await self.session.call_tool(name, arguments, progress_callback=progress)

    async def cancel(self, name: str, arguments: Any, wait: Callable[[], Awaitable[None]]) -> None:
        # This SDK tells the server nothing when a call is abandoned, whether by a time limit or by a cancelled
        # task, so the notification is sent by hand, with the id that the session gave the call.
        number = -1

        async def call() -> None:
            nonlocal number
            number = self.session._request_id
            await self.session.call_tool(name, arguments)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await wait()
            params = types.CancelledNotificationParams(requestId=number, reason="no longer needed")
            notification = types.CancelledNotification(params=params)
            await self.session.send_notification(types.ClientNotification(notification))
            group.cancel_scope.cancel()

    async def set_level(self, level: Any) -> None:
        await self.session.set_logging_level(level)

    async def tools(self) -> Any:
        return await pages("tools", self.session.list_tools)

    async def resources(self) -> Any:
        return await pages("resources", self.session.list_resources)

    async def templates(self) -> Any:
        listed = await pages("resourceTemplates", self.session.list_resource_templates)
        return [template.uriTemplate for template in listed]

    async def prompts(self) -> Any:
        return await pages("prompts", self.session.list_prompts)

    async def read(self, uri: str) -> Any:
        return await self.session.read_resource(AnyUrl(uri))

    async def prompt(self, name: str, arguments: Any) -> Any:
        return await self.session.get_prompt(name, arguments)

    async def complete(self, ref: dict[str, Any], argument: dict[str, str]) -> Any:
        kind = types.PromptReference if ref["type"] == "ref/prompt" else types.ResourceTemplateReference
        return await self.session.complete(kind.model_validate(ref), argument)

    @asynccontextmanager
    async def watch(self, uri: str | None = None, kind: str | None = None) -> Any:
        # Word of changed lists comes by itself.
        if uri:
            await self.session.subscribe_resource(AnyUrl(uri))
        yield
        if uri:
            await self.session.unsubscribe_resource(AnyUrl(uri))


@asynccontextmanager
async def open_peer(target: dict[str, Any], heard: Heard) -> Any:
    peer = Peer(heard)
    headers = {"Authorization": f"Bearer {target['token']}"} if target["token"] else {}
    async with AsyncExitStack() as stack:
        limit = stack.enter_context(anyio.fail_after(LIMIT))
        if target["transport"] == "sse":
            streams = await stack.enter_async_context(sse_client(target["url"], headers))
        else:
            client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(30, read=300))
            http = await stack.enter_async_context(client)
            transport = streamable_http_client(target["url"], http_client=http)
            streams = await stack.enter_async_context(transport)
        session = ClientSession(
            streams[0],
            streams[1],
            sampling_callback=peer.sample,
            elicitation_callback=peer.elicit,
            list_roots_callback=peer.roots,
            logging_callback=peer.log,
            message_handler=peer.message,
        )
        peer.session = await stack.enter_async_context(session)
        peer.revision = str((await peer.session.initialize()).protocolVersion)
        limit.deadline = math.inf
        yield peer


main("py-v1", open_peer)
