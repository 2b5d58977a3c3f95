// A client without an SDK, for the revisions that the SDKs have left behind: it asks for the revision that it
// is told and keeps to what that revision knows.

import { ROOTS, assert, headers, main, pages } from './client.mjs';

/** The events of a stream, each as `{ event, data }`. */
async function* events(body) {
    const decoder = new TextDecoder();
    let text = '';
    for await (const chunk of body) {
        text += decoder.decode(chunk, { stream: true });
        for (let end = text.search(/\r?\n\r?\n/); end >= 0; end = text.search(/\r?\n\r?\n/)) {
            const block = text.slice(0, end);
            text = text.slice(end).replace(/^\r?\n\r?\n/, '');
            const lines = block.split(/\r?\n/).map(line => /^(\w+): ?(.*)$/s.exec(line));
            const of = name => lines.filter(line => line?.[1] === name).map(line => line[2]);
            // An event without data only has an id to come back with.
            if (of('data').join('')) yield { event: of('event')[0] ?? 'message', data: of('data').join('\n') };
        }
    }
}

class Connection {
    #pending = new Map();
    #next = 1;
    #ended = new AbortController();
    #session;
    #to;

    constructor(target, heard) {
        this.target = target;
        this.heard = heard;
        this.revision = target.revision;
    }

    #headers(more = {}) {
        return {
            ...headers(this.target.token),
            ...(this.#session && { 'Mcp-Session-Id': this.#session }),
            // The header came with 2025-06-18.
            ...(this.#session && this.revision >= '2025-06-18' && { 'MCP-Protocol-Version': this.revision }),
            ...more,
        };
    }

    async #post(message) {
        const answer = await fetch(this.#to, {
            method: 'POST',
            headers: this.#headers({ 'Content-Type': 'application/json', Accept: 'application/json, text/event-stream' }),
            body: JSON.stringify(message),
            signal: this.#ended.signal,
        });
        this.#session ??= answer.headers.get('mcp-session-id') ?? undefined;
        const type = answer.headers.get('content-type') ?? '';
        if (answer.status === 202) return answer.body?.cancel();
        if (!answer.ok) throw new Error(`HTTP ${answer.status}: ${(await answer.text()).slice(0, 300)}`);
        if (type.startsWith('text/event-stream')) this.#read(answer.body);
        else for (const each of [await answer.json()].flat()) this.#take(each);
    }

    async #read(body) {
        try {
            for await (const { event, data } of events(body)) {
                if (event === 'endpoint') this.#pending.get('endpoint')?.resolve(data);
                else this.#take(JSON.parse(data));
            }
        } catch {
            // The client closes its streams at its end.
        }
    }

    #take(message) {
        const { id, method, params } = message;
        if (method === undefined) {
            const { resolve, reject } = this.#pending.get(id) ?? {};
            this.#pending.delete(id);
            if (message.error) reject?.(Object.assign(new Error(message.error.message), message.error));
            else resolve?.(message.result);
        } else if (id === undefined) {
            this.#note(method, params);
        } else {
            this.#post({ jsonrpc: '2.0', id, ...this.#answer(method, params) }).catch(() => {});
        }
    }

    #note(method, params) {
        if (method === 'notifications/message') this.heard.log(params);
        if (method === 'notifications/resources/updated') this.heard.updates.push(params.uri);
        if (method === 'notifications/tools/list_changed') this.heard.changes.push('tools');
        if (method === 'notifications/resources/list_changed') this.heard.changes.push('resources');
        if (method === 'notifications/progress') this.#pending.get(params.progressToken)?.onprogress?.(params);
    }

    #answer(method, params) {
        if (method === 'elicitation/create' && this.revision >= '2025-06-18') return { result: this.heard.elicit(params) };
        if (method === 'sampling/createMessage') return { result: this.heard.sample(params) };
        if (method === 'roots/list') return { result: ROOTS };
        if (method === 'ping') return { result: {} };
        return { error: { code: -32601, message: `This client does not know ${method}` } };
    }

    async ask(method, params, { onprogress, signal } = {}) {
        const id = this.#next++;
        const given = onprogress ? { ...params, _meta: { progressToken: id } } : params;
        const answer = new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject, onprogress }));
        signal?.addEventListener('abort', () => {
            this.tell('notifications/cancelled', { requestId: id, reason: 'no longer needed' }).catch(() => {});
            this.#pending.get(id)?.reject(new Error('cancelled'));
            this.#pending.delete(id);
        });
        this.#post({ jsonrpc: '2.0', id, method, params: given }).catch(error => this.#pending.get(id)?.reject(error));
        return answer;
    }

    tell(method, params) {
        return this.#post({ jsonrpc: '2.0', method, params });
    }

    async open() {
        const { url, transport } = this.target;
        this.#to = url;
        if (transport === 'sse') {
            const stream = await this.#listen(url);
            assert(stream.ok, 'the stream opens', stream.status);
            const endpoint = new Promise(resolve => this.#pending.set('endpoint', { resolve }));
            this.#read(stream.body);
            this.#to = new URL(await endpoint, url).href;
            assert(new URL(this.#to).origin === new URL(url).origin, 'the endpoint is of the same origin', this.#to);
        }
        const capabilities = { sampling: {}, roots: { listChanged: true } };
        if (this.revision >= '2025-06-18') capabilities.elicitation = {};
        const clientInfo = { name: 'waffles-matrix-raw', version: '1.0.0' };
        const told = await this.ask('initialize', { protocolVersion: this.revision, capabilities, clientInfo });
        assert(told.protocolVersion === this.revision, `the revision is ${this.revision}`, told.protocolVersion);
        assert(told.serverInfo?.name && told.capabilities?.tools, 'the server says what it is', told);
        await this.tell('notifications/initialized');
        if (transport !== 'sse') {
            const stream = await this.#listen(url);
            if (stream.ok) this.#read(stream.body);
            else assert(stream.status === 405, 'the stream opens or is refused with 405', stream.status);
        }
    }

    #listen(url) {
        return fetch(url, { headers: this.#headers({ Accept: 'text/event-stream' }), signal: this.#ended.signal });
    }

    async close() {
        if (this.#session) {
            const answer = await fetch(this.#to, { method: 'DELETE', headers: this.#headers() });
            await answer.body?.cancel();
        }
        this.#ended.abort();
    }
}

async function open(target, heard) {
    const connection = new Connection(target, heard);
    await connection.open();
    const list = (method, key) => () => pages(key, cursor => connection.ask(method, cursor === undefined ? {} : { cursor }));
    return {
        revision: connection.revision,
        call: (name, args, more) => connection.ask('tools/call', { name, arguments: args }, more),
        setLevel: level => connection.ask('logging/setLevel', { level }),
        tools: list('tools/list', 'tools'),
        resources: list('resources/list', 'resources'),
        templates: list('resources/templates/list', 'resourceTemplates'),
        prompts: list('prompts/list', 'prompts'),
        read: uri => connection.ask('resources/read', { uri }),
        prompt: (name, args) => connection.ask('prompts/get', { name, arguments: args }),
        complete: (ref, argument) => connection.ask('completion/complete', { ref, argument }),
        async watch({ uri }) {
            // Word of changed lists comes by itself.
            if (!uri) return () => {};
            await connection.ask('resources/subscribe', { uri });
            return () => connection.ask('resources/unsubscribe', { uri });
        },
        close: () => connection.close(),
    };
}

await main('raw', open);
