// What both TypeScript clients do against the demo server. Each folder gives this file an
// adapter for its SDK; the checks, their names and their results are the same for all.

const LIMIT = 10_000;

/** Reads `URL --token TOKEN [--era sessions|stateless]`. */
export function options() {
    const [url, ...rest] = process.argv.slice(2);
    const read = (name, fallback) => {
        const at = rest.indexOf(name);
        return at < 0 ? fallback : rest[at + 1];
    };
    const era = read('--era', 'sessions');
    if (!url || url.startsWith('--') || !['sessions', 'stateless'].includes(era)) {
        console.error('usage: check.mjs URL --token TOKEN [--era sessions|stateless]');
        process.exit(2);
    }
    return { url, token: read('--token', ''), era };
}

export const headers = token => (token ? { Authorization: `Bearer ${token}` } : {});

function assert(holds, message, seen) {
    if (!holds) throw new Error(`${message}; saw ${JSON.stringify(seen)}`);
}

const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

async function eventually(condition, message) {
    const end = Date.now() + LIMIT - 2_000;
    while (Date.now() < end) {
        if (await condition()) return;
        await sleep(100);
    }
    throw new Error(message);
}

async function within(promise) {
    let timer;
    const limit = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`no end within ${LIMIT} ms`)), LIMIT);
    });
    try {
        return await Promise.race([promise, limit]);
    } finally {
        clearTimeout(timer);
    }
}

const text = result => result.content?.[0]?.text;
const names = list => list.map(item => item.name).sort();

function same(actual, expected, message) {
    assert(JSON.stringify(actual) === JSON.stringify(expected), message, actual);
}

async function refusal(promise) {
    let result;
    try {
        result = await promise;
    } catch (error) {
        return error;
    }
    throw new Error(`expected an error; saw ${JSON.stringify(result)}`);
}

/**
 * Runs the checks. `adapter` has `name`, `seen` (what the client's own handlers were asked),
 * `notFound` (the code its SDK reports for a resource that is not there), `connect(options)`,
 * `call(name, arguments, { onprogress, signal })`, `read(uri)`, `tools()`, `resources()`,
 * `templates()`, `prompts()`, `prompt(name, arguments)`, `updates(uri)` (resolves after one
 * update of a subscribed resource) and `close(options)`.
 */
export async function run(adapter) {
    const given = options();
    const { era } = given;
    const readme = async () => {
        const contents = (await adapter.read('demo://readme')).contents;
        return Number(/cancelled: (\d+)/.exec(contents[0].text)[1]);
    };
    const checks = {
        connect: () => adapter.connect(given),
        list_tools: async () => {
            const expected = ['add', 'ask', 'echo', 'fail', 'progress', 'sample', 'slow'];
            same(names(await adapter.tools()), expected, 'the tools');
        },
        echo: async () => {
            const message = 'Grüße, 世界 🧇 "quoted" \\ \u2028';
            same(text(await adapter.call('echo', { message })), message, 'the echo');
        },
        add: async () => {
            same((await adapter.call('add', { a: 2, b: 40 })).structuredContent, { sum: 42 }, 'the sum');
        },
        progress: async () => {
            const seen = [];
            const onprogress = progress => seen.push(progress.progress);
            const result = await adapter.call('progress', { steps: 3, delay_ms: 50 }, { onprogress });
            same(text(result), '3 steps done', 'the result');
            same(seen, [1, 2, 3], 'the progress');
        },
        elicitation: async () => {
            const result = await adapter.call('ask', { question: 'Which syrup?' });
            same(adapter.seen.question, 'Which syrup?', 'the question');
            same(text(result), 'The user answered: maple', 'the result');
        },
        sampling: async () => {
            const result = await adapter.call('sample', { prompt: 'Say waffle' });
            same(adapter.seen.prompt, 'Say waffle', 'the prompt');
            same(text(result), 'The model checker answered: waffle', 'the result');
        },
        tool_error: async () => {
            const result = await adapter.call('fail', {});
            assert(result.isError === true, 'the result says that it failed', result);
        },
        unknown_tool: async () => {
            const error = await refusal(adapter.call('no_such_tool', {}));
            assert(error.code === -32602, 'the code is -32602', { code: error.code, message: error.message });
        },
        list_resources: async () => {
            same(names(await adapter.resources()), ['greeting', 'readme'], 'the resources');
        },
        list_templates: async () => {
            same((await adapter.templates()).map(each => each.uriTemplate), ['demo://items/{id}'], 'the templates');
        },
        read_resource: async () => {
            const { contents } = await adapter.read('demo://items/7');
            same([contents[0].uri, contents[0].text], ['demo://items/7', 'This is item 7.'], 'the contents');
        },
        unknown_resource: async () => {
            const error = await refusal(adapter.read('demo://nothing'));
            const code = adapter.notFound;
            assert(error.code === code, `the code is ${code}`, { code: error.code, message: error.message });
        },
        list_prompts: async () => {
            same(names(await adapter.prompts()), ['greet', 'summarise'], 'the prompts');
        },
        get_prompt: async () => {
            const { messages } = await adapter.prompt('greet', { name: 'Ada' });
            assert(messages[0].content.text.includes('Ada'), 'the prompt names Ada', messages);
        },
        subscribe: () => adapter.updates('demo://greeting'),
        cancel: async () => {
            const before = await readme();
            const aborter = new AbortController();
            const start = Date.now();
            const call = refusal(adapter.call('slow', { seconds: 30 }, { signal: aborter.signal }));
            await sleep(300);
            aborter.abort('no longer needed');
            await call;
            assert(Date.now() - start < 5_000, 'the call ends early', Date.now() - start);
            await eventually(async () => (await readme()) > before, 'the server never heard of the cancellation');
        },
        close: () => adapter.close(given),
    };
    const passed = [];
    const failed = [];
    for (const [name, check] of Object.entries(checks)) {
        try {
            await within(check());
            passed.push(name);
        } catch (error) {
            failed.push({ name, error: String(error?.message ?? error) });
            if (name === 'connect') break;
        }
    }
    console.log(JSON.stringify({ client: adapter.name, era, passed, failed }));
    process.exit(failed.length ? 1 : 0);
}

/** A session that was closed is gone: the server must say 404 to whoever still uses its id. */
export async function gone({ url, token }, session) {
    const answer = await fetch(url, {
        method: 'POST',
        headers: {
            ...headers(token),
            'Content-Type': 'application/json',
            Accept: 'application/json, text/event-stream',
            'Mcp-Session-Id': session,
            'MCP-Protocol-Version': '2025-11-25',
        },
        body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' }),
    });
    await answer.body?.cancel();
    assert(answer.status === 404, 'a closed session answers 404', answer.status);
}
