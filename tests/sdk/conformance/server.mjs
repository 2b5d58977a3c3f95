// The server that the conformance suite is pointed at, directly and through the gateway: it
// offers every tool, resource and prompt that the suite's server scenarios call for by name,
// in both eras on one endpoint, or in one of them alone.
// node server.mjs [PORT] [--only sessions|stateless]

import { randomBytes, randomUUID } from 'node:crypto';
import {
    InMemoryServerEventBus,
    McpServer,
    ResourceTemplate,
    WebStandardStreamableHTTPServerTransport,
    createMcpHandler,
    createRequestStateCodec,
    fromJsonSchema,
    hostHeaderValidationResponse,
    inputRequired,
    inputResponse,
    isLegacyRequest,
    localhostAllowedHostnames,
    localhostAllowedOrigins,
    originValidationResponse,
} from '@modelcontextprotocol/server';
import { listen, webListener } from '../matrix/serve.mjs';

// A red pixel as PNG, and a WAV file without a sample.
const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==';
const WAV = Buffer.concat([
    Buffer.from('RIFF'),
    Buffer.from([36, 0, 0, 0]),
    Buffer.from('WAVEfmt '),
    Buffer.from([16, 0, 0, 0, 1, 0, 1, 0, 64, 31, 0, 0, 128, 62, 0, 0, 2, 0, 16, 0]),
    Buffer.from('data'),
    Buffer.from([0, 0, 0, 0]),
]).toString('base64');

const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
const text = value => ({ type: 'text', text: value });
const image = { type: 'image', data: PNG, mimeType: 'image/png' };
const said = value => ({ content: [text(value)] });
const object = (properties = {}, required = Object.keys(properties)) => ({ type: 'object', properties, required });
const string = description => ({ type: 'string', description });

const codec = createRequestStateCodec({ key: randomBytes(32) });

const form = (message, requestedSchema) => ({
    method: 'elicitation/create',
    params: { mode: 'form', message, requestedSchema },
});
const sampling = (prompt, maxTokens = 100) => ({
    method: 'sampling/createMessage',
    params: { messages: [{ role: 'user', content: text(prompt) }], maxTokens },
});
const name = form('What is your name?', object({ name: { type: 'string' } }));

/**
 * Asks the client for one thing and finishes with its answer. The SDK turns the interim result
 * into requests of the server's own for a client of the session era.
 */
async function ask(ctx, key, request, finish) {
    const response = inputResponse(ctx.mcpReq.inputResponses, key);
    return response.kind === 'missing' ? inputRequired({ inputRequests: { [key]: request } }) : finish(response);
}

const told = answer => `action=${answer.action}, content=${JSON.stringify(answer.content ?? {})}`;
const elicited = (ctx, schema) =>
    ask(ctx, 'form', form('Please fill in the form.', schema), answer =>
        said(`Elicitation completed: ${told(answer)}`),
    );

async function logging(ctx) {
    await ctx.mcpReq.log('info', 'Tool execution started');
    await sleep(50);
    await ctx.mcpReq.log('info', 'Tool processing data');
    await sleep(50);
    await ctx.mcpReq.log('info', 'Tool execution completed');
    return said('The tool has logged.');
}

const options = values => values.map(([value, title]) => ({ const: value, title }));

/** Every tool: `[description, input schema, handler(arguments, context, capabilities of the session)]`. */
const tools = {
    test_simple_text: ['Answers with text', object(), () => said('This is a simple text response for testing.')],
    test_image_content: ['Answers with an image', object(), () => ({ content: [image] })],
    test_audio_content: [
        'Answers with audio',
        object(),
        () => ({ content: [{ type: 'audio', data: WAV, mimeType: 'audio/wav' }] }),
    ],
    test_embedded_resource: [
        'Answers with an embedded resource',
        object(),
        () => ({
            content: [
                {
                    type: 'resource',
                    resource: {
                        uri: 'test://embedded-resource',
                        mimeType: 'text/plain',
                        text: 'This is an embedded resource content.',
                    },
                },
            ],
        }),
    ],
    test_multiple_content_types: [
        'Answers with several kinds of content',
        object(),
        () => ({
            content: [
                text('Multiple content types test:'),
                image,
                {
                    type: 'resource',
                    resource: {
                        uri: 'test://mixed-content-resource',
                        mimeType: 'application/json',
                        text: JSON.stringify({ test: 'data', value: 123 }),
                    },
                },
            ],
        }),
    ],
    test_tool_with_logging: ['Logs while it works', object(), (_, ctx) => logging(ctx)],
    test_logging_tool: ['Logs while it works', object(), (_, ctx) => logging(ctx)],
    test_tool_with_progress: [
        'Reports progress',
        object(),
        async (_, ctx) => {
            const progressToken = ctx.mcpReq._meta?.progressToken;
            for (const progress of [0, 50, 100]) {
                if (progressToken !== undefined) {
                    const params = { progressToken, progress, total: 100 };
                    await ctx.mcpReq.notify({ method: 'notifications/progress', params });
                }
                await sleep(50);
            }
            return said('The tool has reported its progress.');
        },
    ],
    test_error_handling: [
        'Fails',
        object(),
        () => {
            throw new Error('This tool intentionally returns an error for testing');
        },
    ],
    test_reconnection: [
        'Closes its stream and answers to whoever comes back',
        object(),
        async (_, ctx) => {
            ctx.http?.closeSSE?.();
            await sleep(100);
            return said('The client came back.');
        },
    ],
    test_sampling: [
        "Asks the client's model",
        object({ prompt: string('What to ask') }),
        ({ prompt }, ctx) =>
            ask(ctx, 'sample', sampling(prompt), ({ result }) => {
                const content = [result.content].flat()[0];
                return said(`LLM response: ${content?.text}`);
            }),
    ],
    test_elicitation: [
        'Asks the user',
        object({ message: string('What to ask') }),
        ({ message }, ctx) => {
            const schema = object({ username: string("User's response"), email: string("User's email address") });
            return ask(ctx, 'user', form(message, schema), answer => said(`User response: ${told(answer)}`));
        },
    ],
    test_elicitation_sep1034_defaults: [
        'Asks with defaults',
        object(),
        (_, ctx) =>
            elicited(
                ctx,
                object(
                    {
                        name: { type: 'string', default: 'John Doe' },
                        age: { type: 'integer', default: 30 },
                        score: { type: 'number', default: 95.5 },
                        status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
                        verified: { type: 'boolean', default: true },
                    },
                    [],
                ),
            ),
    ],
    test_elicitation_sep1330_enums: [
        'Asks with every kind of enumeration',
        object(),
        (_, ctx) =>
            elicited(
                ctx,
                object(
                    {
                        untitledSingle: { type: 'string', enum: ['option1', 'option2', 'option3'] },
                        titledSingle: {
                            type: 'string',
                            oneOf: options([
                                ['value1', 'First Option'],
                                ['value2', 'Second Option'],
                                ['value3', 'Third Option'],
                            ]),
                        },
                        legacyEnum: {
                            type: 'string',
                            enum: ['opt1', 'opt2', 'opt3'],
                            enumNames: ['Option One', 'Option Two', 'Option Three'],
                        },
                        untitledMulti: {
                            type: 'array',
                            items: { type: 'string', enum: ['option1', 'option2', 'option3'] },
                        },
                        titledMulti: {
                            type: 'array',
                            items: {
                                anyOf: options([
                                    ['value1', 'First Choice'],
                                    ['value2', 'Second Choice'],
                                    ['value3', 'Third Choice'],
                                ]),
                            },
                        },
                    },
                    [],
                ),
            ),
    ],
    json_schema_2020_12_tool: [
        'Has a schema that uses much of JSON Schema 2020-12',
        {
            $schema: 'https://json-schema.org/draft/2020-12/schema',
            type: 'object',
            $defs: {
                address: {
                    $anchor: 'addressDef',
                    type: 'object',
                    properties: { street: { type: 'string' }, city: { type: 'string' } },
                },
            },
            properties: {
                name: { type: 'string' },
                address: { $ref: '#/$defs/address' },
                contactMethod: { type: 'string', enum: ['phone', 'email'] },
                phone: { type: 'string' },
                email: { type: 'string' },
            },
            allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
            if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
            then: { required: ['phone'] },
            else: { required: ['email'] },
            additionalProperties: false,
        },
        args => said(`Called with ${JSON.stringify(args)}`),
    ],
    test_custom_headers: [
        'Has an argument that travels in a header too',
        object({ region: { type: 'string', 'x-mcp-header': 'Region' } }),
        ({ region }) => said(`The region is ${region}.`),
    ],
    test_missing_capability: [
        'Cannot do without sampling',
        object(),
        // The SDK itself refuses to ask a client for what it did not declare.
        (_, ctx) => ask(ctx, 'sample', sampling('Can you sample?'), () => said('The client can sample.')),
    ],
    test_streaming_elicitation: ['Asks the user', object(), (_, ctx) => ask(ctx, 'user_name', name, () => said('Done.'))],
    test_trigger_tool_change: [
        'Announces that the tools have changed',
        object(),
        () => {
            bus.publish({ kind: 'tools_list_changed' });
            return said('Announced.');
        },
    ],
    test_trigger_prompt_change: [
        'Announces that the prompts have changed',
        object(),
        () => {
            bus.publish({ kind: 'prompts_list_changed' });
            return said('Announced.');
        },
    ],
    test_input_required_result_elicitation: [
        'Asks for a name',
        object(),
        (_, ctx) => ask(ctx, 'user_name', name, answer => said(`Hello, ${answer.content?.name}!`)),
    ],
    test_input_required_result_sampling: [
        'Asks the model',
        object(),
        (_, ctx) =>
            ask(ctx, 'capital_question', sampling('What is the capital of France?'), ({ result }) =>
                said(`The model said: ${[result?.content].flat()[0]?.text}`),
            ),
    ],
    test_input_required_result_list_roots: [
        'Asks for the roots',
        object(),
        (_, ctx) =>
            ask(ctx, 'client_roots', { method: 'roots/list', params: {} }, ({ roots }) =>
                said(`The roots: ${roots?.map(root => root.uri).join(', ')}`),
            ),
    ],
    test_input_required_result_request_state: ['Keeps a state', object(), (_, ctx) => confirmed(ctx)],
    test_input_required_result_tampered_state: ['Keeps a state', object(), (_, ctx) => confirmed(ctx)],
    test_input_required_result_multiple_inputs: [
        'Asks for three things at once',
        object(),
        async (_, ctx) => {
            const inputRequests = {
                user_name: name,
                greeting: sampling('Generate a greeting', 50),
                client_roots: { method: 'roots/list', params: {} },
            };
            const responses = ctx.mcpReq.inputResponses ?? {};
            const missing = Object.keys(inputRequests).some(key => !(key in responses));
            if (missing) return inputRequired({ inputRequests, requestState: await codec.mint({ step: 'all' }, ctx) });
            return said('Everything has arrived.');
        },
    ],
    test_input_required_result_multi_round: [
        'Asks twice',
        object(),
        async (_, ctx) => {
            const state = ctx.mcpReq.requestState();
            const responses = ctx.mcpReq.inputResponses ?? {};
            if (state?.step === 2 && 'step2' in responses) return said('Both steps are done.');
            const second = state?.step >= 1 && 'step1' in responses;
            const request = second
                ? form('Step 2: What is your favorite color?', object({ color: { type: 'string' } }))
                : form('Step 1: What is your name?', object({ name: { type: 'string' } }));
            const step = second ? 2 : 1;
            return inputRequired({
                inputRequests: { [`step${step}`]: request },
                requestState: await codec.mint({ step }, ctx),
            });
        },
    ],
    test_input_required_result_capabilities: [
        'Asks only for what the client can do',
        object(),
        (_, ctx, ofSession) => {
            const declared = ctx.mcpReq.envelope?.['io.modelcontextprotocol/clientCapabilities'];
            const capabilities = declared ?? ofSession ?? {};
            const inputRequests = {};
            if (capabilities.elicitation) inputRequests.user_name = name;
            if (capabilities.sampling) inputRequests.greeting = sampling('Generate a greeting', 50);
            if (capabilities.roots) inputRequests.client_roots = { method: 'roots/list', params: {} };
            const responses = ctx.mcpReq.inputResponses ?? {};
            const missing = Object.keys(inputRequests).some(key => !(key in responses));
            return missing ? inputRequired({ inputRequests }) : said('Nothing is missing.');
        },
    ],
};

async function confirmed(ctx) {
    const state = ctx.mcpReq.requestState();
    const response = inputResponse(ctx.mcpReq.inputResponses, 'confirm');
    if (state?.step === 'confirm' && response.kind !== 'missing') return said('state-ok');
    return inputRequired({
        inputRequests: { confirm: form('Please confirm', object({ ok: { type: 'boolean' } })) },
        requestState: await codec.mint({ step: 'confirm' }, ctx),
    });
}

const user = content => ({ role: 'user', content });

/** Every prompt: `[description, arguments schema or nothing, handler]`. */
const prompts = {
    test_simple_prompt: ['A prompt', undefined, () => [user(text('This is a simple prompt for testing.'))]],
    test_prompt_with_arguments: [
        'A prompt with arguments',
        object({ arg1: string('First test argument'), arg2: string('Second test argument') }),
        ({ arg1, arg2 }) => [user(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`))],
    ],
    test_prompt_with_embedded_resource: [
        'A prompt with a resource',
        object({ resourceUri: string('URI of the resource to embed') }),
        ({ resourceUri }) => [
            user({
                type: 'resource',
                resource: {
                    uri: resourceUri,
                    mimeType: 'text/plain',
                    text: 'Embedded resource content for testing.',
                },
            }),
            user(text('Please process the embedded resource above.')),
        ],
    ],
    test_prompt_with_image: [
        'A prompt with an image',
        undefined,
        () => [user(image), user(text('Please analyze the image above.'))],
    ],
    test_input_required_result_prompt: [
        'A prompt that asks the user first',
        undefined,
        ctx =>
            ask(
                ctx,
                'user_context',
                form('What context should the prompt use?', object({ context: { type: 'string' } })),
                answer => [user(text(`The context is ${answer.content?.context}.`))],
            ),
    ],
};

function build() {
    const server = new McpServer(
        { name: 'waffles-conformance', version: '1.0.0' },
        {
            capabilities: {
                tools: { listChanged: true },
                prompts: { listChanged: true },
                resources: { subscribe: true, listChanged: true },
                logging: {},
                completions: {},
            },
            requestState: { verify: codec.verify },
        },
    );
    for (const [tool, [description, schema, handler]] of Object.entries(tools)) {
        server.registerTool(tool, { description, inputSchema: fromJsonSchema(schema) }, async (args, ctx) =>
            handler(args, ctx, server.server.getClientCapabilities()),
        );
    }
    for (const [prompt, [description, schema, handler]] of Object.entries(prompts)) {
        const argsSchema = schema && fromJsonSchema(schema);
        server.registerPrompt(prompt, { description, argsSchema }, async (...given) => {
            const messages = await handler(...given);
            return Array.isArray(messages) ? { messages } : messages;
        });
    }
    const resource = (id, mimeType, contents) =>
        server.registerResource(id, `test://${id}`, { mimeType }, async uri => ({
            contents: [{ uri: uri.href, mimeType, ...contents }],
        }));
    resource('static-text', 'text/plain', { text: 'This is the content of the static text resource.' });
    resource('static-binary', 'image/png', { blob: PNG });
    resource('watched-resource', 'text/plain', { text: 'This is the content of the watched resource.' });
    server.registerResource(
        'template',
        new ResourceTemplate('test://template/{id}/data', { list: undefined }),
        { mimeType: 'application/json' },
        async (uri, { id }) => ({
            contents: [
                {
                    uri: uri.href,
                    mimeType: 'application/json',
                    text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }),
                },
            ],
        }),
    );
    server.server.setRequestHandler('resources/subscribe', async () => ({}));
    server.server.setRequestHandler('resources/unsubscribe', async () => ({}));
    server.server.setRequestHandler('completion/complete', async ({ params }) => {
        const values = ['paris', 'park', 'party'].filter(value => value.startsWith(params.argument.value));
        return { completion: { values, total: values.length, hasMore: false } };
    });
    return server;
}

/** Keeps every event of a session, so that a client may come back for those it has missed. */
class Events {
    #events = [];

    async storeEvent(stream, message) {
        this.#events.push({ stream, message });
        return String(this.#events.length - 1);
    }

    async getStreamIdForEventId(id) {
        return this.#events[Number(id)]?.stream;
    }

    async replayEventsAfter(id, { send }) {
        const { stream } = this.#events[Number(id)] ?? {};
        for (const [at, event] of this.#events.entries()) {
            // The event that opens a stream has an id and no message.
            if (at > Number(id) && event.stream === stream && event.message?.jsonrpc) {
                await send(String(at), event.message);
            }
        }
        return stream;
    }
}

const bus = new InMemoryServerEventBus();
const modern = createMcpHandler(build, { legacy: 'reject', bus });
const sessions = new Map();

bus.subscribe(({ kind }) => {
    for (const { server } of sessions.values()) {
        if (kind === 'tools_list_changed') server.sendToolListChanged();
        if (kind === 'prompts_list_changed') server.sendPromptListChanged();
    }
});

function refused(status, message) {
    return Response.json({ jsonrpc: '2.0', error: { code: -32000, message } }, { status });
}

async function legacy(request) {
    const id = request.headers.get('mcp-session-id');
    if (id) {
        const session = sessions.get(id);
        return session ? session.transport.handleRequest(request) : refused(404, 'There is no such session.');
    }
    const server = build();
    const transport = new WebStandardStreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        eventStore: new Events(),
        retryInterval: 500,
        onsessioninitialized: session => void sessions.set(session, { server, transport }),
        onsessionclosed: session => void sessions.delete(session),
    });
    await server.connect(transport);
    return transport.handleRequest(request);
}

const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;

/** Whether a request is for the session era; a server of one era refuses the other as the SDK does. */
async function isSessions(request) {
    return only === undefined ? isLegacyRequest(request) : only === 'sessions';
}

async function answer(request) {
    if (new URL(request.url).pathname !== '/mcp') return new Response(null, { status: 404 });
    return (
        hostHeaderValidationResponse(request, localhostAllowedHostnames()) ??
        originValidationResponse(request, localhostAllowedOrigins()) ??
        ((await isSessions(request)) ? legacy(request) : modern.fetch(request))
    );
}

const origin = await listen(webListener(answer), Number(process.argv[2]) || 0);
console.log(JSON.stringify({ url: `${origin}/mcp` }));
