"""What the Python fixture servers offer, apart from how an SDK is told so. The same as fixture.mjs."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import uvicorn

LEVELS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]

CAPABILITIES = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "logging": {},
    "completions": {},
}

STRING = {"type": "string"}

# Each tool: a description, and the properties of its arguments.
TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "ask": ("Asks the user", {"question": STRING}),
    "cancelled": ("Says whether a slow call was cancelled", {"label": STRING}),
    "echo": ("Sends a message back", {"message": STRING}),
    "fail": ("Fails", {}),
    "grow": ("Adds a tool", {"name": STRING}),
    "log": ("Logs at two levels", {"text": STRING}),
    "progress": ("Reports progress", {"steps": {"type": "integer"}}),
    "roots": ("Lists the client's roots", {}),
    "sample": ("Asks the client's model", {"prompt": STRING}),
    "slow": ("Takes its time", {"seconds": {"type": "number"}, "label": STRING}),
    "touch": ("Changes a resource", {"uri": STRING}),
}


def schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def said(text: str, failed: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": failed}


class Refusal(Exception):
    """An error with a code of JSON-RPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class World:
    """What all sessions and requests of one fixture server share."""

    def __init__(self) -> None:
        self.listeners: dict[object, Callable[[str, str], Awaitable[None]]] = {}
        self.grown: list[str] = []
        self.cancelled: set[str] = set()
        self.running: set[str] = set()
        self.touched = 0

    async def publish(self, kind: str, uri: str = "") -> None:
        """Tells every listener of `tools` that changed, or of a `resource` that did."""
        for key, listener in list(self.listeners.items()):
            try:
                with anyio.fail_after(5):
                    await listener(kind, uri)
            except Exception:  # A session that is gone hears no more.
                self.listeners.pop(key, None)


class Fixture:
    """The answers. `io` is what an SDK gives to one request: `progress(done, total)`, `log(level, data)` and
    `ask(method, params, finish)`, which asks the client and finishes with its answer.

    `elicits` is false for revisions that know no elicitation, `not_found` is the revision's code for a resource
    that is not there.
    """

    def __init__(self, world: World, elicits: bool = True, not_found: int = -32002) -> None:
        self.world = world
        self.elicits = elicits
        self.not_found = not_found

    def tools(self) -> dict[str, Any]:
        offered = {name: tool for name, tool in TOOLS.items() if self.elicits or name != "ask"}
        offered |= {name: ("Has grown", {}) for name in self.world.grown}
        return {
            "tools": [
                {"name": name, "description": description, "inputSchema": schema(properties)}
                for name, (description, properties) in offered.items()
            ]
        }

    async def call(self, name: str, arguments: dict[str, Any], io: Any) -> Any:
        if name in self.world.grown:
            return said(name)
        if name not in TOOLS or (name == "ask" and not self.elicits):
            raise Refusal(-32602, f"Unknown tool: {name}")
        return await getattr(self, f"call_{name}")(io, **arguments)

    async def call_echo(self, _io: Any, message: str) -> Any:
        return said(message)

    async def call_fail(self, _io: Any) -> Any:
        return said("This tool always fails.", failed=True)

    async def call_progress(self, io: Any, steps: int) -> Any:
        for step in range(1, steps + 1):
            await io.progress(step, steps)
            await anyio.sleep(0.1)
        return said(f"{steps} steps done")

    async def call_log(self, io: Any, text: str) -> Any:
        await io.log("debug", f"quiet {text}")
        await io.log("error", text)
        return said("logged")

    async def call_slow(self, _io: Any, seconds: float, label: str) -> Any:
        self.world.running.add(label)
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            self.world.cancelled.add(label)
            raise
        return said("done")

    async def call_cancelled(self, _io: Any, label: str) -> Any:
        if label in self.world.cancelled:
            return said("yes")
        return said("running" if label in self.world.running else "no")

    async def call_ask(self, io: Any, question: str) -> Any:
        form = {"mode": "form", "message": question, "requestedSchema": schema({"answer": STRING})}

        def finish(answer: dict[str, Any]) -> Any:
            return said(f"The user answered: {(answer.get('content') or {}).get('answer', answer['action'])}")

        return await io.ask("elicitation/create", form, finish)

    async def call_sample(self, io: Any, prompt: str) -> Any:
        message = {"role": "user", "content": {"type": "text", "text": prompt}}

        def finish(answer: dict[str, Any]) -> Any:
            content = answer["content"]
            text = (content[0] if isinstance(content, list) else content)["text"]
            return said(f"The model {answer['model']} answered: {text}")

        return await io.ask("sampling/createMessage", {"messages": [message], "maxTokens": 100}, finish)

    async def call_roots(self, io: Any) -> Any:
        def finish(answer: dict[str, Any]) -> Any:
            return said(", ".join(root["uri"] for root in answer["roots"]) or "none")

        return await io.ask("roots/list", {}, finish)

    async def call_touch(self, _io: Any, uri: str) -> Any:
        self.world.touched += 1
        await self.world.publish("resource", uri)
        return said("touched")

    async def call_grow(self, _io: Any, name: str) -> Any:
        self.world.grown.append(f"grown-{name}")
        await self.world.publish("tools")
        return said("grown")

    def resources(self) -> dict[str, Any]:
        return {
            "resources": [
                {"name": name, "uri": f"fixture://{name}", "mimeType": "text/plain"} for name in ("greeting", "counter")
            ]
        }

    def templates(self) -> dict[str, Any]:
        return {
            "resourceTemplates": [{"name": "item", "uriTemplate": "fixture://items/{id}", "mimeType": "text/plain"}]
        }

    def read(self, uri: str) -> dict[str, Any]:
        item = re.fullmatch(r"fixture://items/(\w+)", uri)
        if item:
            text = f"This is item {item.group(1)}."
        elif uri == "fixture://greeting":
            text = "Hello from the fixture."
        elif uri == "fixture://counter":
            text = f"Touched {self.world.touched} times."
        else:
            raise Refusal(self.not_found, f"There is no resource {uri}.")
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": text}]}

    def prompts(self) -> dict[str, Any]:
        name = {"name": "name", "required": True}
        return {
            "prompts": [
                {"name": "greet", "description": "Greets someone", "arguments": [name]},
                {"name": "summarise", "description": "Summarises"},
            ]
        }

    def prompt(self, name: str, arguments: dict[str, str] | None) -> dict[str, Any]:
        if name not in ("greet", "summarise"):
            raise Refusal(-32602, f"Unknown prompt: {name}")
        text = f"Please greet {(arguments or {}).get('name')}." if name == "greet" else "Please summarise."
        return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}

    def complete(self, ref: dict[str, Any], argument: dict[str, Any]) -> dict[str, Any]:
        known = {
            ("greet", "name"): ["Ada", "Alan", "Grace"],
            ("fixture://items/{id}", "id"): ["1", "10", "2"],
        }
        values = known.get((str(ref.get("name") or ref.get("uri")), argument["name"]))
        if values is None:
            raise Refusal(-32602, f"Nothing is known of {ref}")
        values = [value for value in values if value.startswith(argument["value"])]
        return {"completion": {"values": values, "total": len(values), "hasMore": False}}


def refused(status: int, code: int, message: str, data: Any = None) -> Any:
    """An ASGI app that answers with an error."""
    error = {"code": code, "message": message} | ({"data": data} if data else {})
    body = json.dumps({"jsonrpc": "2.0", "error": error}).encode()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def pinned(app: Any, revision: str) -> Any:
    """Makes a server of `revision` of `app`, which would agree to every revision that its SDK knows: what
    `initialize` asks for is replaced on its way in."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("method") != "POST":
            await app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if b'"initialize"' in body:
            parsed = json.loads(body)
            if parsed.get("method") == "initialize":
                parsed["params"]["protocolVersion"] = revision
                body = json.dumps(parsed).encode()
        length = (b"content-length", str(len(body)).encode())
        scope = scope | {"headers": [h for h in scope["headers"] if h[0] != b"content-length"] + [length]}
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await app(scope, replay, send)

    return wrapped


async def serve(doors: dict[str, Any], paths: dict[str, str], contexts: list[Any]) -> None:
    """Serves each door under its name on a free port of the loopback address, and says where."""
    from contextlib import AsyncExitStack

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        door = doors.get(scope["path"].split("/")[1])
        await (door or refused(404, -32000, "There is no such door."))(scope, receive, send)

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    async with AsyncExitStack() as stack:
        for context in contexts:
            await stack.enter_async_context(context)
        listener.listen(128)
        print(json.dumps({"urls": {name: origin + path for name, path in paths.items()}}), flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])
    sys.exit(0)
