"""What both Python clients do against the demo server.

Each folder gives this module an adapter for its SDK; the checks, their names and their
results are the same for all, and the same as in check.mjs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

LIMIT = 10.0


@dataclass
class Given:
    url: str
    token: str
    era: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def options() -> Given:
    """Reads `URL --token TOKEN [--era sessions|stateless]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--token", default="")
    parser.add_argument("--era", choices=["sessions", "stateless"], default="sessions")
    given = parser.parse_args()
    return Given(given.url, given.token, given.era)


def expect(holds: bool, message: str, seen: Any) -> None:
    if not holds:
        raise AssertionError(f"{message}; saw {seen!r}")


def same(actual: Any, expected: Any, message: str) -> None:
    expect(actual == expected, message, actual)


async def refusal(error: type[Exception], call: Callable[[], Awaitable[Any]]) -> Any:
    """The error that `call` ends with."""
    try:
        result = await call()
    except error as refused:
        return refused
    raise AssertionError(f"expected an error; saw {result!r}")


async def gone(client: Any, given: Given, session: str) -> None:
    """A session that was closed is gone: the server must say 404 to whoever uses its id."""
    answer = await client.post(
        given.url,
        headers={
            **given.headers,
            "Accept": "application/json, text/event-stream",
            "Mcp-Session-Id": session,
            "MCP-Protocol-Version": "2025-11-25",
        },
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    )
    same(answer.status_code, 404, "a closed session answers 404")


def checks(adapter: Any) -> dict[str, Callable[[], Awaitable[None]]]:
    """The checks by name.

    `adapter` has `seen` (what the client's callbacks were asked), `error`, `code(error)`,
    `call(name, arguments, progress=None)`, `read(uri)`, `tools()`, `resources()`,
    `templates()`, `prompts()`, `prompt(name, arguments)` and `update(uri)` (which returns
    after one update of a subscribed resource).
    """

    async def readme() -> int:
        result = await adapter.read("demo://readme")
        found = re.search(r"cancelled: (\d+)", result.contents[0].text)
        assert found, result
        return int(found.group(1))

    async def list_tools() -> None:
        names = sorted(tool.name for tool in await adapter.tools())
        same(names, ["add", "ask", "echo", "fail", "progress", "sample", "slow"], "the tools")

    async def echo() -> None:
        message = 'Grüße, 世界 🧇 "quoted" \\ \u2028'
        same((await adapter.call("echo", {"message": message})).content[0].text, message, "the echo")

    async def add() -> None:
        result = await adapter.call("add", {"a": 2, "b": 40})
        same(adapter.structured(result), {"sum": 42}, "the sum")

    async def progress() -> None:
        seen: list[float] = []

        async def report(done: float, _total: float | None, _message: str | None) -> None:
            seen.append(done)

        result = await adapter.call("progress", {"steps": 3, "delay_ms": 50}, report)
        same(result.content[0].text, "3 steps done", "the result")
        same(seen, [1, 2, 3], "the progress")

    async def elicitation() -> None:
        result = await adapter.call("ask", {"question": "Which syrup?"})
        same(adapter.seen["question"], "Which syrup?", "the question")
        same(result.content[0].text, "The user answered: maple", "the result")

    async def sampling() -> None:
        result = await adapter.call("sample", {"prompt": "Say waffle"})
        same(adapter.seen["prompt"], "Say waffle", "the prompt")
        same(result.content[0].text, "The model checker answered: waffle", "the result")

    async def tool_error() -> None:
        result = await adapter.call("fail", {})
        expect(adapter.failed(result), "the result says that it failed", result)

    async def unknown_tool() -> None:
        error = await refusal(adapter.error, lambda: adapter.call("no_such_tool", {}))
        same(adapter.code(error), -32602, f"the code is -32602 ({error})")

    async def list_resources() -> None:
        names = sorted(resource.name for resource in await adapter.resources())
        same(names, ["greeting", "readme"], "the resources")

    async def list_templates() -> None:
        same([str(t) for t in await adapter.templates()], ["demo://items/{id}"], "the templates")

    async def read_resource() -> None:
        contents = (await adapter.read("demo://items/7")).contents[0]
        same((str(contents.uri), contents.text), ("demo://items/7", "This is item 7."), "the contents")

    async def unknown_resource() -> None:
        error = await refusal(adapter.error, lambda: adapter.read("demo://nothing"))
        same(adapter.code(error), adapter.not_found, f"the code is {adapter.not_found} ({error})")

    async def list_prompts() -> None:
        names = sorted(prompt.name for prompt in await adapter.prompts())
        same(names, ["greet", "summarise"], "the prompts")

    async def get_prompt() -> None:
        messages = (await adapter.prompt("greet", {"name": "Ada"})).messages
        expect("Ada" in messages[0].content.text, "the prompt names Ada", messages)

    async def subscribe() -> None:
        await adapter.update("demo://greeting")

    async def cancel() -> None:
        before = await readme()
        with anyio.fail_after(5):
            await adapter.cancel("slow", {"seconds": 30}, 0.3)
        while await readme() <= before:
            await anyio.sleep(0.1)

    return {
        check.__name__: check
        for check in (
            list_tools, echo, add, progress, elicitation, sampling, tool_error, unknown_tool,
            list_resources, list_templates, read_resource, unknown_resource, list_prompts,
            get_prompt, subscribe, cancel,
        )
    }  # fmt: skip


def report(client: str, era: str, passed: list[str], failed: list[dict[str, str]]) -> None:
    print(json.dumps({"client": client, "era": era, "passed": passed, "failed": failed}), flush=True)
    sys.exit(1 if failed else 0)


def short(error: BaseException) -> str:
    """The innermost message: task groups wrap every error in a group of one."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def each(adapter: Any, names: dict[str, Any], passed: list[str], failed: list[dict[str, str]]) -> None:
    """Runs the checks one after the other, each within its own time limit."""
    for name, check in names.items():
        try:
            with anyio.fail_after(LIMIT):
                await check()
            passed.append(name)
        except Exception as error:  # A check may fail in any way; the others still run.
            failed.append({"name": name, "error": short(error)})
