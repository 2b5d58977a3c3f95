"""The Python SDK 2.x as a client, in both eras.

The SDK chooses by `mode`: "legacy" never probes, a revision adopts that one without a
probe, and "auto" (not used here) probes with `server/discover`.

python check.py URL --token TOKEN --era sessions|stateless
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import anyio
import httpx2
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ResourceUpdated

from checks import LIMIT, checks, each, gone, options, report, short

# The session era's subscriptions and sampling are deprecated, and still have to work.
warnings.simplefilter("ignore")


class Adapter:
    error = MCPError

    def __init__(self, stateless: bool) -> None:
        self.stateless = stateless
        self.not_found = -32602 if stateless else -32002
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
        if isinstance(message, types.ResourceUpdatedNotification):
            self.updated.setdefault(str(message.params.uri), anyio.Event()).set()

    def code(self, error):
        return error.code

    def structured(self, result):
        return result.structured_content

    def failed(self, result):
        return result.is_error is True

    async def call(self, name, arguments, progress=None):
        return await self.client.call_tool(name, arguments, progress_callback=progress)

    async def cancel(self, name, arguments, after):
        # A cancelled scope is how this SDK cancels a call: it sends the notification in the
        # session era and closes the stream in the stateless one.
        with anyio.move_on_after(after) as scope:
            await self.client.call_tool(name, arguments)
        assert scope.cancelled_caught, "the call ended by itself"

    async def read(self, uri):
        return await self.client.read_resource(uri, cache_mode="bypass")

    async def tools(self):
        return (await self.client.list_tools()).tools

    async def resources(self):
        return (await self.client.list_resources()).resources

    async def templates(self):
        return [t.uri_template for t in (await self.client.list_resource_templates()).resource_templates]

    async def prompts(self):
        return (await self.client.list_prompts()).prompts

    async def prompt(self, name, arguments):
        return await self.client.get_prompt(name, arguments)

    async def update(self, uri):
        if self.stateless:
            async with self.client.listen(resource_subscriptions=[uri]) as subscription:
                async for event in subscription:
                    if isinstance(event, ResourceUpdated) and str(event.uri) == uri:
                        return
            raise AssertionError("the subscription ended without an update")
        self.updated[uri] = anyio.Event()
        await self.client.subscribe_resource(uri)
        await self.updated[uri].wait()
        await self.client.unsubscribe_resource(uri)


async def main() -> None:
    given = options()
    stateless = given.era == "stateless"
    adapter = Adapter(stateless)
    passed: list[str] = []
    failed: list[dict[str, str]] = []
    sessions: set[str] = set()
    step = "connect"

    async def note(response) -> None:
        if session := response.headers.get("mcp-session-id"):
            sessions.add(session)

    try:
        async with httpx2.AsyncClient(
            headers=given.headers,
            timeout=httpx2.Timeout(30, read=300),
            event_hooks={"response": [note]},
        ) as http:
            async with Client(
                streamable_http_client(given.url, http_client=http),
                mode="2026-07-28" if stateless else "legacy",
                sampling_callback=adapter.complete,
                elicitation_callback=adapter.elicit,
                message_handler=adapter.message,
                read_timeout_seconds=LIMIT,
            ) as client:
                adapter.client = client
                version = client.protocol_version
                assert (version == "2026-07-28") == stateless, f"the wrong era: {version}"
                assert bool(sessions) != stateless, f"the sessions are {sessions}"
                passed.append(step)
                step = "close"
                await each(adapter, checks(adapter), passed, failed)
            for session in sessions:
                with anyio.fail_after(LIMIT):
                    await gone(http, given, session)
        passed.append(step)
    except Exception as error:
        failed.append({"name": step, "error": short(error)})
    report("py-v2", given.era, passed, failed)


anyio.run(main)
