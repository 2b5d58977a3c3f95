// What every JavaScript client does for the compatibility matrix. `client.py` does the same.
//
// A client program reads {"parallel": n, "targets": [{id, url, token, era, transport, revision, vocabulary,
// prefix, uris, skip}]} from its standard input and prints one line per target as it is done with it:
// {id, client, revision, checks: [{name, status: "pass"|"fail"|"unsupported", detail}]}.
//
// `vocabulary` says what to ask of the server and what to expect of it; where it has a sentence instead, the
// server has no such feature. `prefix` and `uris` stand before the server's names and URIs at a federated
// door. `skip` names the checks that the caller knows to be impossible.

import { randomUUID } from 'node:crypto';

const LIMIT = 10_000;

export const CHECKS = [
    'handshake',
    'list',
    'call',
    'error',
    'progress',
    'log',
    'cancel',
    'elicitation',
    'sampling',
    'roots',
    'resources',
    'templates',
    'subscribe',
    'prompts',
    'completion',
    'list-changed',
];

/** What a check says when the client has no means for it. */
class Unsupported extends Error {}

export const ROOTS = { roots: [{ uri: 'file:///waffles', name: 'waffles' }] };

export const sampled = { model: 'checker', role: 'assistant', content: { type: 'text', text: 'waffle' } };

/** What a server asked its client, and what it told it: the handlers of a client write, the checks read. */
export class Heard {
    questions = [];
    prompts = [];
    logs = [];
    updates = [];
    changes = [];
    content = {};

    elicit(params) {
        this.questions.push(params.message);
        return { action: 'accept', content: this.content };
    }

    sample(params) {
        this.prompts.push([params.messages[0].content].flat()[0].text);
        return sampled;
    }

    log(params) {
        this.logs.push(typeof params.data === 'string' ? params.data : JSON.stringify(params.data));
    }
}

export function assert(holds, message, seen) {
    if (!holds) throw new Error(`${message}; saw ${JSON.stringify(seen)}`);
}

const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

async function within(limit, promise) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`no end within ${limit} ms`)), limit);
    });
    try {
        return await Promise.race([promise, late]);
    } finally {
        clearTimeout(timer);
    }
}

async function eventually(condition, message, seen = () => undefined) {
    const end = Date.now() + LIMIT - 2_000;
    while (Date.now() < end) {
        if (await condition()) return;
        await sleep(50);
    }
    throw new Error(`${message}; saw ${JSON.stringify(seen())}`);
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

const textOf = result => (result.content ?? []).map(block => block.text ?? '').join('\n');

function includesAll(listed, wanted, what) {
    const missing = wanted.filter(each => !listed.includes(each));
    assert(!missing.length, `${what} have ${JSON.stringify(missing)}`, listed.slice(0, 40));
}

/** `words` with each `$label` replaced. */
function labelled(words, label) {
    return JSON.parse(JSON.stringify(words).replaceAll('$label', label));
}

/**
 * The checks of one target. `peer` is the open connection: `call(name, arguments, { onprogress, signal, level })`,
 * `setLevel(level)`, `tools()`, `resources()`, `templates()`, `prompts()`, `read(uri)`, `prompt(name, arguments)`,
 * `complete(ref, argument)`, `watch({ uri, kind })` (which returns a function that ends it) and `heard`. A method
 * that is missing is one that the client does not have; `limits` says of other checks why the client cannot pass them,
 * and `rootless` that it has no roots to tell of.
 */
function checksOf(peer, { vocabulary, prefix = '', uris = '' }) {
    const label = () => randomUUID().slice(0, 8);
    const use = (method, ...args) => {
        if (!peer[method]) throw new Unsupported(`the client cannot ${method}`);
        return peer[method](...args);
    };
    const call = (words, more) => use('call', prefix + words.tool, words.arguments, more);
    /** Calls until something is heard: a tool that toggles may switch off what another run has switched on. */
    const until = async (words, more, heard, message, seen) => {
        for (let times = words.toggles ? 3 : 1; times > 1; times -= 1) {
            await call(words, more);
            for (let waited = 0; waited < 2_000 && !heard(); waited += 50) await sleep(50);
            if (heard()) return;
        }
        await call(words, more);
        await eventually(heard, message, seen);
    };
    const asks = (feature, heard) => async () => {
        const words = vocabulary[feature];
        peer.heard.content = words.content ?? {};
        const before = heard().length;
        const result = await call(words);
        const text = feature === 'roots' && peer.rootless ? words.none : words.text;
        assert(textOf(result).includes(text), `the result has ${text}`, result);
        if (!words.asked) return;
        const asked = heard().slice(before);
        assert(asked.length === 1 && asked[0].includes(words.asked), `the client was asked ${words.asked}`, asked);
    };
    return {
        async list() {
            const listed = (await use('tools')).map(tool => tool.name);
            includesAll(listed, vocabulary.list.has.map(name => prefix + name), 'the tools');
        },
        async call() {
            const result = await call(vocabulary.call);
            assert(!result.isError && textOf(result).includes(vocabulary.call.text), 'the result is right', result);
        },
        async error() {
            const words = vocabulary.error;
            const result = await call(words);
            assert(result.isError === true && textOf(result).includes(words.text), 'the result says that it failed', result);
            const error = await refusal(use('read', uris + words.uri));
            // A client that reports no codes still has to report a refusal.
            const known = error.code === undefined || [-32602, -32002].includes(error.code);
            assert(known, 'the code is -32602 or -32002', { code: error.code, message: error.message });
        },
        async progress() {
            const words = vocabulary.progress;
            const seen = [];
            const result = await call(words, { onprogress: progress => seen.push(progress.progress) });
            assert(textOf(result).includes(words.text), `the result has ${words.text}`, result);
            await eventually(() => seen.length >= words.seen.length, 'not all progress arrived', () => seen);
            // The last step may come in one piece with the result, and some clients stop listening there.
            // A stateless client may issue a call again whose stream broke, and then hears of both: what counts is that
            // all steps came, in their order.
            let next = 0;
            for (const step of seen) {
                next += Number(step === words.seen[next]);
            }
            assert(next === words.seen.length, 'the progress is in order', seen);
        },
        async log() {
            const words = labelled(vocabulary.log, label());
            await use('setLevel', words.level);
            const has = text => peer.heard.logs.some(log => log.includes(text));
            const heard = () => has(words.seen);
            await until(words, { level: words.level }, heard, `no log has ${words.seen}`, () => peer.heard.logs);
            assert(!words.unseen || !has(words.unseen), 'the level holds', peer.heard.logs);
        },
        async cancel() {
            const words = labelled(vocabulary.cancel, label());
            const { proof } = words;
            const count = async () => Number(new RegExp(proof.grows).exec((await use('read', uris + proof.uri)).contents[0].text)[1]);
            const before = proof.grows && (await count());
            const aborter = new AbortController();
            const given = refusal(call(words, { signal: aborter.signal }));
            // A call that the server has not begun would be cancelled without its knowing.
            if (proof.before) await eventually(async () => textOf(await call(proof)) === proof.before, 'the call never began');
            else await sleep(400);
            const start = Date.now();
            aborter.abort('no longer needed');
            await given;
            assert(Date.now() - start < 2_000, 'the call ends early', Date.now() - start);
            const proven = async () => (proof.grows ? (await count()) > before : textOf(await call(proof)) === proof.text);
            await eventually(proven, 'the server never heard of the cancellation');
        },
        elicitation: asks('elicitation', () => peer.heard.questions),
        sampling: asks('sampling', () => peer.heard.prompts),
        roots: asks('roots', () => []),
        async resources() {
            const words = vocabulary.resources;
            const listed = (await use('resources')).map(resource => resource.uri);
            includesAll(listed, words.has.map(uri => uris + uri), 'the resources');
            const { contents } = await use('read', uris + words.uri);
            assert(contents[0].uri === uris + words.uri, 'the contents say what was asked for', contents[0].uri);
            assert(contents[0].text.includes(words.text), `the contents have ${words.text}`, contents[0].text.slice(0, 200));
        },
        async templates() {
            const words = vocabulary.templates;
            const listed = (await use('templates')).map(template => template.uriTemplate);
            includesAll(listed, words.has.map(uri => uris + uri), 'the templates');
            const { contents } = await use('read', uris + words.uri);
            assert(contents[0].uri === uris + words.uri, 'the contents say what was asked for', contents[0].uri);
            assert(contents[0].text.includes(words.text), `the contents have ${words.text}`, contents);
        },
        async subscribe() {
            const words = vocabulary.subscribe;
            const uri = uris + words.uri;
            const before = peer.heard.updates.length;
            const end = await use('watch', { uri });
            try {
                const updates = () => peer.heard.updates.slice(before);
                const heard = () => updates().includes(uri);
                if (words.tool) await until(words, undefined, heard, `no update of ${uri}`, updates);
                else await eventually(heard, `no update of ${uri}`, updates);
            } finally {
                await end();
            }
        },
        async prompts() {
            const words = vocabulary.prompts;
            includesAll((await use('prompts')).map(each => each.name), words.has.map(name => prefix + name), 'the prompts');
            const { messages } = await use('prompt', prefix + words.name, words.arguments);
            assert(messages[0].content.text.includes(words.text), `the prompt has ${words.text}`, messages);
        },
        async completion() {
            for (const { ref, argument, values } of vocabulary.completion) {
                const whole = ref.name ? { ...ref, name: prefix + ref.name } : { ...ref, uri: uris + ref.uri };
                const { completion } = await use('complete', whole, argument);
                assert(JSON.stringify(completion.values) === JSON.stringify(values), `the values are ${values}`, completion);
            }
        },
        async 'list-changed'() {
            const words = labelled(vocabulary['list-changed'], label());
            const before = peer.heard.changes.length;
            const end = await use('watch', { kind: words.kind });
            try {
                await call(words);
                const changes = () => peer.heard.changes.slice(before);
                await eventually(() => changes().includes(words.kind), `no word of changed ${words.kind}`, changes);
                const listed = async () =>
                    words.kind === 'tools'
                        ? (await use('tools')).some(tool => tool.name === prefix + words.appears)
                        : (await use('resources')).some(resource => resource.uri === uris + words.appears);
                await eventually(listed, `the list never had ${words.appears}`);
            } finally {
                await end();
            }
        },
    };
}

/** One run: every check in order, each with a time limit. */
async function run(client, open, target) {
    const report = { id: target.id, client, revision: '', checks: [] };
    const note = (name, status, detail = '') => report.checks.push({ name, status, detail });
    const { vocabulary, skip = {} } = target;
    let peer;
    try {
        peer = await within(LIMIT, open(target));
        report.revision = peer.revision ?? '';
        note('handshake', 'pass');
    } catch (error) {
        note('handshake', 'fail', said(error));
        for (const name of CHECKS.slice(1)) note(name, 'fail', 'there is no connection');
        return report;
    }
    const checks = checksOf(peer, target);
    for (const name of CHECKS.slice(1)) {
        if (skip[name] !== undefined) {
            note(name, 'unsupported', skip[name]);
        } else if (typeof vocabulary[name] === 'string') {
            note(name, 'unsupported', `the server ${vocabulary[name]}`);
        } else if (peer.limits?.[name]) {
            note(name, 'unsupported', `the client ${peer.limits[name]}`);
        } else {
            try {
                await within(LIMIT, checks[name]());
                note(name, 'pass');
            } catch (error) {
                note(name, error instanceof Unsupported ? 'unsupported' : 'fail', said(error));
            }
        }
    }
    await within(LIMIT, Promise.resolve(peer.close())).catch(() => {});
    return report;
}

const said = error => String(error?.message ?? error).slice(0, 600);

async function input() {
    let text = '';
    for await (const chunk of process.stdin) text += chunk;
    return JSON.parse(text);
}

/** Runs all targets, a few at a time; `open(target, heard)` connects. */
export async function main(client, open) {
    // A promise that an SDK left behind must not end the other runs.
    process.on('unhandledRejection', error => console.error(client, error));
    const { parallel, targets } = await input();
    const left = [...targets];
    const worker = async () => {
        for (let target = left.shift(); target; target = left.shift()) {
            const heard = new Heard();
            const report = await run(client, async given => ({ heard, ...(await open(given, heard)) }), target);
            process.stdout.write(`${JSON.stringify(report)}\n`);
        }
    };
    await Promise.all(Array.from({ length: parallel }, worker));
    process.exit(0);
}

/** All pages of a list: `page(cursor)` gives `{ [key], nextCursor }`. */
export async function pages(key, page) {
    const all = [];
    let cursor;
    do {
        const result = await page(cursor);
        all.push(...result[key]);
        cursor = result.nextCursor;
    } while (cursor !== undefined);
    return all;
}

export const headers = token => (token ? { Authorization: `Bearer ${token}` } : {});
