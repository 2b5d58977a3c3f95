// What the TypeScript fixture servers offer, apart from how an SDK is told so. `fixture.py` offers
// the same; `vocabulary.json` says what the clients make of it.

const sleep = (milliseconds, signal) =>
    new Promise((resolve, reject) => {
        const timer = setTimeout(resolve, milliseconds);
        signal?.addEventListener('abort', () => {
            clearTimeout(timer);
            reject(new Error('the call was cancelled'));
        });
    });

const string = { type: 'string' };
const object = (properties = {}) => ({ type: 'object', properties, required: Object.keys(properties) });
const said = text => ({ content: [{ type: 'text', text }] });

/** Each tool: `[description, properties of its arguments]`. */
const TOOLS = {
    ask: ['Asks the user', { question: string }],
    cancelled: ['Says whether a slow call was cancelled', { label: string }],
    echo: ['Sends a message back', { message: string }],
    fail: ['Fails', {}],
    grow: ['Adds a tool', { name: string }],
    log: ['Logs at two levels', { text: string }],
    progress: ['Reports progress', { steps: { type: 'integer' } }],
    roots: ["Lists the client's roots", {}],
    sample: ["Asks the client's model", { prompt: string }],
    slow: ['Takes its time', { seconds: { type: 'number' }, label: string }],
    touch: ['Changes a resource', { uri: string }],
};

export const CAPABILITIES = {
    tools: { listChanged: true },
    prompts: { listChanged: true },
    resources: { subscribe: true, listChanged: true },
    logging: {},
    completions: {},
};

/** The levels from least to most severe. */
export const LEVELS = ['debug', 'info', 'notice', 'warning', 'error', 'critical', 'alert', 'emergency'];

/** An error with a code of JSON-RPC's. */
export class Refusal extends Error {
    constructor(code, message) {
        super(message);
        this.code = code;
    }
}

/** What all sessions and requests of one fixture server share. */
export class World {
    #listeners = new Set();
    grown = new Set();
    cancelled = new Set();
    running = new Set();
    touched = 0;

    /** Hears `{ kind: 'tools' }` and `{ kind: 'resource', uri }` until the returned function is called. */
    listen(listener) {
        this.#listeners.add(listener);
        return () => this.#listeners.delete(listener);
    }

    publish(event) {
        for (const listener of this.#listeners) listener(event);
    }
}

/**
 * The handlers by method: `(params, io) => result`. `io` is what an SDK gives to one request: `signal`,
 * `progress(done, total)`, `log(level, data)` and `ask(method, params, finish)`, which asks the client
 * and finishes with its answer. `elicits` is false for revisions that know no elicitation, `notFound` is
 * the revision's code for a resource that is not there.
 */
export function handlers(world, { elicits = true, notFound = -32002 } = {}) {
    const tools = () => {
        const offered = Object.entries(TOOLS).filter(([name]) => elicits || name !== 'ask');
        const listed = offered.map(([name, [description, properties]]) => ({
            name,
            description,
            inputSchema: object(properties),
        }));
        const grown = [...world.grown].map(name => ({ name, description: 'Has grown', inputSchema: object() }));
        return [...listed, ...grown];
    };
    const text = uri => {
        if (uri === 'fixture://greeting') return 'Hello from the fixture.';
        if (uri === 'fixture://counter') return `Touched ${world.touched} times.`;
        const item = /^fixture:\/\/items\/(\w+)$/.exec(uri);
        if (item) return `This is item ${item[1]}.`;
        throw new Refusal(notFound, `There is no resource ${uri}.`);
    };
    const calls = {
        echo: ({ message }) => said(message),
        fail: () => ({ ...said('This tool always fails.'), isError: true }),
        async progress({ steps }, io) {
            for (let step = 1; step <= steps; step += 1) {
                await io.progress(step, steps);
                await sleep(100);
            }
            return said(`${steps} steps done`);
        },
        async log({ text }, io) {
            await io.log('debug', `quiet ${text}`);
            await io.log('error', text);
            return said('logged');
        },
        async slow({ seconds, label }, io) {
            world.running.add(label);
            try {
                await sleep(seconds * 1000, io.signal);
            } catch (error) {
                world.cancelled.add(label);
                throw error;
            }
            return said('done');
        },
        cancelled: ({ label }) => said(world.cancelled.has(label) ? 'yes' : world.running.has(label) ? 'running' : 'no'),
        ask: ({ question }, io) =>
            io.ask(
                'elicitation/create',
                { mode: 'form', message: question, requestedSchema: object({ answer: string }) },
                answer => said(`The user answered: ${answer.content?.answer ?? answer.action}`),
            ),
        sample: ({ prompt }, io) =>
            io.ask(
                'sampling/createMessage',
                { messages: [{ role: 'user', content: { type: 'text', text: prompt } }], maxTokens: 100 },
                answer => said(`The model ${answer.model} answered: ${[answer.content].flat()[0]?.text}`),
            ),
        roots: (_, io) =>
            io.ask('roots/list', undefined, ({ roots }) => said(roots.map(root => root.uri).join(', ') || 'none')),
        touch({ uri }) {
            world.touched += 1;
            world.publish({ kind: 'resource', uri });
            return said('touched');
        },
        grow({ name }) {
            world.grown.add(`grown-${name}`);
            world.publish({ kind: 'tools' });
            return said('grown');
        },
    };
    return {
        'tools/list': () => ({ tools: tools() }),
        'tools/call'({ name, arguments: args = {} }, io) {
            if (world.grown.has(name)) return said(name);
            if (!calls[name] || (name === 'ask' && !elicits)) throw new Refusal(-32602, `Unknown tool: ${name}`);
            return calls[name](args, io);
        },
        'resources/list': () => ({
            resources: ['greeting', 'counter'].map(name => ({ name, uri: `fixture://${name}`, mimeType: 'text/plain' })),
        }),
        'resources/templates/list': () => ({
            resourceTemplates: [{ name: 'item', uriTemplate: 'fixture://items/{id}', mimeType: 'text/plain' }],
        }),
        'resources/read': ({ uri }) => ({ contents: [{ uri, mimeType: 'text/plain', text: text(uri) }] }),
        'prompts/list': () => ({
            prompts: [
                { name: 'greet', description: 'Greets someone', arguments: [{ name: 'name', required: true }] },
                { name: 'summarise', description: 'Summarises' },
            ],
        }),
        'prompts/get'({ name, arguments: args = {} }) {
            if (!['greet', 'summarise'].includes(name)) throw new Refusal(-32602, `Unknown prompt: ${name}`);
            const text = name === 'greet' ? `Please greet ${args.name}.` : 'Please summarise.';
            return { messages: [{ role: 'user', content: { type: 'text', text } }] };
        },
        'completion/complete'({ ref, argument }) {
            const known = {
                'ref/prompt greet name': ['Ada', 'Alan', 'Grace'],
                'ref/resource fixture://items/{id} id': ['1', '10', '2'],
            };
            const all = known[`${ref.type} ${ref.name ?? ref.uri} ${argument.name}`];
            if (!all) throw new Refusal(-32602, `Nothing is known of ${JSON.stringify(ref)}`);
            const values = all.filter(value => value.startsWith(argument.value));
            return { completion: { values, total: values.length, hasMore: false } };
        },
    };
}
