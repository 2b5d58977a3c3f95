"""The Python SDK 1.x as a client. It speaks sessions only: the SDK has no 2026-07-28.

python check.py URL --token TOKEN
"""

import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import anyio
import httpx
import mcp.types as types
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client
from pydantic import AnyUrl

from checks import LIMIT, checks, each, gone, options, report, short


class Adapter:
    error = McpError
    not_found = -32002

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.updated: dict[str, anyio.Event] = {}

    async def elicit(self, _context, params):
        self.seen["question"] = params.message
        return types.ElicitResult(action="accept", content={"answer": "maple"})

    async def complete(self, _context, params):
        content = params.messages[0].content
        self.seen["prompt"] = (content[0] if isinstance(content, list) else content).text
        answer = types.TextContent(type="text", text="waffle")
        return types.CreateMessageResult(role="assistant", content=answer, model="checker")

    async def message(self, message) -> None:
        if isinstance(message, types.ServerNotification):
            if isinstance(message.root, types.ResourceUpdatedNotification):
                self.updated.setdefault(str(message.root.params.uri), anyio.Event()).set()

    def code(self, error):
        return error.error.code

    def structured(self, result):
        return result.structuredContent

    def failed(self, result):
        return result.isError is True

    async def call(self, name, arguments, progress=None):
        return await self.session.call_tool(name, arguments, progress_callback=progress)

    async def cancel(self, name, arguments, after):
        # This SDK tells the server nothing when a call is abandoned, whether by a time limit
        # or by a cancelled task, so the notification is sent by hand, with the id that the
        # session gave the call.
        number = self.session._request_id
        ended = anyio.Event()

        async def abandon():
            try:
                await self.session.call_tool(name, arguments, timedelta(seconds=after))
            except McpError:
                ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(abandon)
            await ended.wait()
            params = types.CancelledNotificationParams(requestId=number, reason="no longer needed")
            notification = types.CancelledNotification(params=params)
            await self.session.send_notification(types.ClientNotification(notification))

    async def read(self, uri):
        return await self.session.read_resource(AnyUrl(uri))

    async def tools(self):
        return (await self.session.list_tools()).tools

    async def resources(self):
        return (await self.session.list_resources()).resources

    async def templates(self):
        return [t.uriTemplate for t in (await self.session.list_resource_templates()).resourceTemplates]

    async def prompts(self):
        return (await self.session.list_prompts()).prompts

    async def prompt(self, name, arguments):
        return await self.session.get_prompt(name, arguments)

    async def update(self, uri):
        self.updated[uri] = anyio.Event()
        await self.session.subscribe_resource(AnyUrl(uri))
        await self.updated[uri].wait()
        await self.session.unsubscribe_resource(AnyUrl(uri))


async def main() -> None:
    given = options()
    if given.era != "sessions":
        sys.exit("the Python SDK 1.x speaks sessions only")
    adapter = Adapter()
    passed: list[str] = []
    failed: list[dict[str, str]] = []
    step = "connect"
    try:
        timeout = httpx.Timeout(30, read=300)
        async with httpx.AsyncClient(headers=given.headers, timeout=timeout) as http:
            async with streamable_http_client(given.url, http_client=http) as (read, write, id_of):
                async with ClientSession(
                    read,
                    write,
                    sampling_callback=adapter.complete,
                    elicitation_callback=adapter.elicit,
                    message_handler=adapter.message,
                ) as session:
                    adapter.session = session
                    with anyio.fail_after(LIMIT):
                        await session.initialize()
                    session_id = id_of()
                    assert session_id, "the server gave no session"
                    passed.append(step)
                    step = "close"
                    await each(adapter, checks(adapter), passed, failed)
            with anyio.fail_after(LIMIT):
                await gone(http, given, session_id)
        passed.append(step)
    except Exception as error:
        failed.append({"name": step, "error": short(error)})
    report("py-v1", given.era, passed, failed)


anyio.run(main)
