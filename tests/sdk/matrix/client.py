"""What every Python client does for the compatibility matrix. The same as client.mjs, which says how it is called."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import anyio

LIMIT = 10.0

CHECKS = [
    "handshake",
    "list",
    "call",
    "error",
    "progress",
    "log",
    "cancel",
    "elicitation",
    "sampling",
    "roots",
    "resources",
    "templates",
    "subscribe",
    "prompts",
    "completion",
    "list-changed",
]


@dataclass
class Heard:
    """What a server asked its client, and what it told it: the callbacks of a client write, the checks read."""

    questions: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)

    def log(self, data: Any) -> None:
        self.logs.append(data if isinstance(data, str) else json.dumps(data))


def expect(holds: bool, message: str, seen: Any) -> None:
    if not holds:
        raise AssertionError(f"{message}; saw {seen!r}")


async def eventually(condition: Callable[[], Awaitable[bool]], message: str, seen: Any = None) -> None:
    with anyio.move_on_after(LIMIT - 2):
        while not await condition():
            await anyio.sleep(0.05)
        return
    raise AssertionError(f"{message}; saw {seen() if seen else None!r}")


def text_of(result: Any) -> str:
    return "\n".join(getattr(block, "text", "") or "" for block in result.content)


def includes_all(listed: list[str], wanted: list[str], what: str) -> None:
    missing = [each for each in wanted if each not in listed]
    expect(not missing, f"{what} have {missing}", listed[:40])


def labelled(words: Any) -> Any:
    """`words` with each `$label` replaced by one new label."""
    return json.loads(json.dumps(words).replace("$label", uuid.uuid4().hex[:8]))


class Checks:
    """The checks of one target; see `checksOf` in client.mjs. `peer` has `call(name, arguments, progress=None,
    level=None)`, `cancel(name, arguments, wait)` (which cancels once `wait()` is over), `set_level(level)`, `tools()`, `resources()`, `templates()`,
    `prompts()`, `read(uri)`, `prompt(name, arguments)`, `complete(ref, argument)`, `watch(uri, kind)` (a context
    manager), `failed(result)`, `code(error)`, `error` and `heard`.
    """

    def __init__(self, peer: Any, target: dict[str, Any]) -> None:
        self.peer = peer
        self.words = target["vocabulary"]
        self.prefix = target.get("prefix", "")
        self.uris = target.get("uris", "")

    async def use(self, words: dict[str, Any], **more: Any) -> Any:
        return await self.peer.call(self.prefix + words["tool"], words["arguments"], **more)

    async def until(self, words: dict[str, Any], condition: Any, message: str, seen: Any, **more: Any) -> None:
        """Calls until something is heard: a tool that toggles may switch off what another run has switched on."""
        for _ in range(2 if "toggles" in words else 0):
            await self.use(words, **more)
            with anyio.move_on_after(2):
                while not await condition():
                    await anyio.sleep(0.05)
                return
        if "tool" in words:
            await self.use(words, **more)
        await eventually(condition, message, seen)

    async def list(self) -> None:
        listed = [tool.name for tool in await self.peer.tools()]
        includes_all(listed, [self.prefix + name for name in self.words["list"]["has"]], "the tools")

    async def call(self) -> None:
        words = self.words["call"]
        result = await self.use(words)
        expect(not self.peer.failed(result) and words["text"] in text_of(result), "the result is right", result)

    async def error(self) -> None:
        words = self.words["error"]
        result = await self.use(words)
        expect(self.peer.failed(result) and words["text"] in text_of(result), "the result says that it failed", result)
        try:
            read = await self.peer.read(self.uris + words["uri"])
        except self.peer.error as refused:
            code = self.peer.code(refused)
            expect(code in (-32602, -32002), "the code is -32602 or -32002", (code, str(refused)))
            return
        raise AssertionError(f"expected an error; saw {read!r}")

    async def progress(self) -> None:
        words = self.words["progress"]
        seen: list[float] = []

        async def note(progress: float, _total: float | None, _message: str | None) -> None:
            seen.append(progress)

        result = await self.use(words, progress=note)
        expect(words["text"] in text_of(result), f"the result has {words['text']}", result)

        async def whole() -> bool:
            return len(seen) >= len(words["seen"])

        await eventually(whole, "not all progress arrived", lambda: seen)
        # The last step may come in one piece with the result, and some clients stop listening there.
        expect(seen[: len(words["seen"])] == words["seen"], "the progress is in order", seen)

    async def log(self) -> None:
        words = labelled(self.words["log"])
        await self.peer.set_level(words["level"])

        async def has(text: str = words["seen"]) -> bool:
            return any(text in log for log in self.peer.heard.logs)

        message = f"no log has {words['seen']}"
        await self.until(words, has, message, lambda: self.peer.heard.logs, level=words["level"])
        expect(not ("unseen" in words and await has(words["unseen"])), "the level holds", self.peer.heard.logs)

    async def cancel(self) -> None:
        words = labelled(self.words["cancel"])
        proof = words["proof"]

        async def count() -> int:
            contents = (await self.peer.read(self.uris + proof["uri"])).contents
            found = re.search(proof["grows"], contents[0].text)
            return int(found.group(1)) if found else -1

        before = await count() if "grows" in proof else 0
        async def begun() -> bool:
            return text_of(await self.use(proof)) == proof["before"]

        async def wait() -> None:
            # A call that the server has not begun would be cancelled without its knowing.
            if "before" in proof:
                await eventually(begun, "the call never began")
            else:
                await anyio.sleep(0.4)

        await self.peer.cancel(self.prefix + words["tool"], words["arguments"], wait)

        async def proven() -> bool:
            if "grows" in proof:
                return await count() > before
            return text_of(await self.use(proof)) == proof["text"]

        await eventually(proven, "the server never heard of the cancellation")

    async def asks(self, words: dict[str, Any], heard: list[str]) -> None:
        self.peer.heard.content = words.get("content", {})
        before = len(heard)
        result = await self.use(words)
        expect(words["text"] in text_of(result), f"the result has {words['text']}", result)
        if "asked" in words:
            asked = heard[before:]
            expect(len(asked) == 1 and words["asked"] in asked[0], f"the client was asked {words['asked']}", asked)

    async def elicitation(self) -> None:
        await self.asks(self.words["elicitation"], self.peer.heard.questions)

    async def sampling(self) -> None:
        await self.asks(self.words["sampling"], self.peer.heard.prompts)

    async def roots(self) -> None:
        await self.asks(self.words["roots"], [])

    async def contents(self, words: dict[str, Any]) -> None:
        contents = (await self.peer.read(self.uris + words["uri"])).contents
        expect(str(contents[0].uri) == self.uris + words["uri"], "the contents say what was asked for", contents[0].uri)
        expect(words["text"] in contents[0].text, f"the contents have {words['text']}", contents[0].text[:200])

    async def resources(self) -> None:
        words = self.words["resources"]
        listed = [str(resource.uri) for resource in await self.peer.resources()]
        includes_all(listed, [self.uris + uri for uri in words["has"]], "the resources")
        await self.contents(words)

    async def templates(self) -> None:
        words = self.words["templates"]
        includes_all(await self.peer.templates(), [self.uris + uri for uri in words["has"]], "the templates")
        await self.contents(words)

    async def subscribe(self) -> None:
        words = self.words["subscribe"]
        uri = self.uris + words["uri"]
        before = len(self.peer.heard.updates)
        async with self.peer.watch(uri=uri):

            async def updated() -> bool:
                return uri in self.peer.heard.updates[before:]

            await self.until(words, updated, f"no update of {uri}", lambda: self.peer.heard.updates[before:])

    async def prompts(self) -> None:
        words = self.words["prompts"]
        listed = [prompt.name for prompt in await self.peer.prompts()]
        includes_all(listed, [self.prefix + name for name in words["has"]], "the prompts")
        messages = (await self.peer.prompt(self.prefix + words["name"], words["arguments"])).messages
        expect(words["text"] in messages[0].content.text, f"the prompt has {words['text']}", messages)

    async def completion(self) -> None:
        for words in self.words["completion"]:
            ref = dict(words["ref"])
            ref |= {"name": self.prefix + ref["name"]} if "name" in ref else {"uri": self.uris + ref["uri"]}
            values = (await self.peer.complete(ref, words["argument"])).completion.values
            expect(values == words["values"], f"the values are {words['values']}", values)

    async def list_changed(self) -> None:
        words = labelled(self.words["list-changed"])
        before = len(self.peer.heard.changes)
        async with self.peer.watch(kind=words["kind"]):
            await self.use(words)

            async def changed() -> bool:
                return words["kind"] in self.peer.heard.changes[before:]

            await eventually(changed, f"no word of changed {words['kind']}", lambda: self.peer.heard.changes[before:])

            async def listed() -> bool:
                if words["kind"] == "tools":
                    return self.prefix + words["appears"] in [tool.name for tool in await self.peer.tools()]
                return self.uris + words["appears"] in [str(each.uri) for each in await self.peer.resources()]

            await eventually(listed, f"the list never had {words['appears']}")


def short(error: BaseException) -> str:
    """The innermost message: task groups wrap every error in a group of one."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:600]


async def run(client: str, open_peer: Any, target: dict[str, Any]) -> dict[str, Any]:
    """One run: every check in order, each with a time limit."""
    done: list[dict[str, str]] = []
    report = {"id": target["id"], "client": client, "revision": "", "checks": done}

    def note(name: str, status: str, detail: str = "") -> None:
        done.append({"name": name, "status": status, "detail": detail})

    vocabulary, skip = target["vocabulary"], target.get("skip", {})
    try:
        async with open_peer(target, Heard()) as peer:
            report["revision"] = peer.revision
            note("handshake", "pass")
            checks = Checks(peer, target)
            for name in CHECKS[1:]:
                if name in skip:
                    note(name, "unsupported", skip[name])
                elif isinstance(vocabulary[name], str):
                    note(name, "unsupported", f"the server {vocabulary[name]}")
                else:
                    try:
                        with anyio.fail_after(LIMIT):
                            await getattr(checks, name.replace("-", "_"))()
                        note(name, "pass")
                    except Exception as error:  # A check may fail in any way; the others still run.
                        note(name, "fail", short(error))
    except Exception as error:
        print(f"{target['id']}: {short(error)}", file=sys.stderr)
        names = [each["name"] for each in done]
        for name in CHECKS:
            if name not in names:
                note(name, "fail", short(error) if name == "handshake" else "there is no connection")
    return report


Open = Callable[[dict[str, Any], Heard], AbstractAsyncContextManager[Any]]


def main(client: str, open_peer: Open) -> None:
    """Runs all targets, a few at a time; `open_peer(target, heard)` connects within its own time limit."""
    given = json.load(sys.stdin)
    left = list(given["targets"])

    async def worker() -> None:
        while left:
            report = await run(client, open_peer, left.pop(0))
            print(json.dumps(report), flush=True)

    async def workers() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(given["parallel"]):
                group.start_soon(worker)

    anyio.run(workers)
    sys.exit(0)


async def pages(key: str, page: Callable[[str | None], Awaitable[Any]]) -> list[Any]:
    """All pages of a list: `page(cursor)` gives one."""
    everything: list[Any] = []
    cursor: str | None = None
    while True:
        result = await page(cursor)
        everything += getattr(result, key)
        cursor = getattr(result, "nextCursor", None) or getattr(result, "next_cursor", None)
        if cursor is None:
            return everything
