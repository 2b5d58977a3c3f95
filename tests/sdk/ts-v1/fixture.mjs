// Fixture servers of the TypeScript SDK 1.x, one for each revision that it speaks, and one without
// sessions that answers with JSON only.
// node fixture.mjs prints {"urls": {"2024-11-05": …, "2025-03-26": …, "2025-06-18": …, "2025-11-25": …, "json": …}}

import { randomUUID } from 'node:crypto';
import { Server } from '@modelcontextprotocol/sdk/server/index.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import * as types from '@modelcontextprotocol/sdk/types.js';
import { CAPABILITIES, LEVELS, Refusal, World, handlers } from '../matrix/fixture.mjs';
import { listen } from '../matrix/serve.mjs';

const SCHEMAS = {
    'tools/list': types.ListToolsRequestSchema,
    'tools/call': types.CallToolRequestSchema,
    'resources/list': types.ListResourcesRequestSchema,
    'resources/templates/list': types.ListResourceTemplatesRequestSchema,
    'resources/read': types.ReadResourceRequestSchema,
    'prompts/list': types.ListPromptsRequestSchema,
    'prompts/get': types.GetPromptRequestSchema,
    'completion/complete': types.CompleteRequestSchema,
};
const ANSWERS = {
    'elicitation/create': types.ElicitResultSchema,
    'sampling/createMessage': types.CreateMessageResultSchema,
    'roots/list': types.ListRootsResultSchema,
};

/** One server of `revision`: a session of its own, or a single request. */
function build(world, revision) {
    const server = new Server(
        { name: 'waffles-fixture-ts-v1', version: '1.0.0' },
        { capabilities: CAPABILITIES, instructions: 'Call echo.' },
    );
    // The SDK agrees to every revision that it knows, and this server knows one.
    server.setRequestHandler(types.InitializeRequestSchema, request =>
        server._oninitialize({ ...request, params: { ...request.params, protocolVersion: revision } }),
    );
    let level = 'debug';
    server.setRequestHandler(types.SetLevelRequestSchema, ({ params }) => {
        level = params.level;
        return {};
    });
    const subscribed = new Set();
    server.setRequestHandler(types.SubscribeRequestSchema, ({ params }) => {
        subscribed.add(params.uri);
        return {};
    });
    server.setRequestHandler(types.UnsubscribeRequestSchema, ({ params }) => {
        subscribed.delete(params.uri);
        return {};
    });
    const io = extra => ({
        signal: extra.signal,
        async progress(progress, total) {
            const progressToken = extra._meta?.progressToken;
            if (progressToken === undefined) return;
            await extra.sendNotification({ method: 'notifications/progress', params: { progressToken, progress, total } });
        },
        async log(at, data) {
            if (LEVELS.indexOf(at) < LEVELS.indexOf(level)) return;
            await extra.sendNotification({ method: 'notifications/message', params: { level: at, data } });
        },
        ask: async (method, params, finish) => finish(await extra.sendRequest({ method, params }, ANSWERS[method])),
    });
    for (const [method, handler] of Object.entries(handlers(world, { elicits: revision >= '2025-06-18' }))) {
        server.setRequestHandler(SCHEMAS[method], async ({ params }, extra) => {
            try {
                return await handler(params ?? {}, io(extra));
            } catch (error) {
                throw error instanceof Refusal ? new types.McpError(error.code, error.message) : error;
            }
        });
    }
    const ignore = () => {};
    const forget = world.listen(event => {
        if (event.kind === 'tools') server.sendToolListChanged().catch(ignore);
        else if (subscribed.has(event.uri)) server.sendResourceUpdated({ uri: event.uri }).catch(ignore);
    });
    server.onclose = forget;
    return server;
}

/** HTTP+SSE: a GET opens the stream, and messages are posted beside it. */
function overSse(revision) {
    const world = new World();
    const open = new Map();
    return async (request, response, url) => {
        if (request.method === 'POST' && url.pathname.endsWith('/messages')) {
            const transport = open.get(url.searchParams.get('sessionId'));
            if (!transport) return response.writeHead(404).end();
            return transport.handlePostMessage(request, response);
        }
        if (request.method !== 'GET' || !url.pathname.endsWith('/sse')) return response.writeHead(404).end();
        const transport = new SSEServerTransport(`/${revision}/messages`, response);
        open.set(transport.sessionId, transport);
        response.on('close', () => open.delete(transport.sessionId));
        return build(world, revision).connect(transport);
    };
}

function withSessions(revision) {
    const world = new World();
    const sessions = new Map();
    return async (request, response) => {
        const id = request.headers['mcp-session-id'];
        if (id) {
            const transport = sessions.get(id);
            return transport ? transport.handleRequest(request, response) : refuse(response, 404, 'There is no such session.');
        }
        const transport = new StreamableHTTPServerTransport({
            sessionIdGenerator: randomUUID,
            onsessioninitialized: session => void sessions.set(session, transport),
            onsessionclosed: session => void sessions.delete(session),
        });
        await build(world, revision).connect(transport);
        return transport.handleRequest(request, response);
    };
}

/** Without sessions: a server for each request, an answer in JSON, and no stream. */
function inJson(revision) {
    const world = new World();
    return async (request, response) => {
        if (request.method !== 'POST') return refuse(response, 405, 'There is no stream.');
        const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true });
        const server = build(world, revision);
        // To close the server would cancel the call, and a client of this era that goes away cancels nothing.
        response.on('finish', () => server.close());
        await server.connect(transport);
        return transport.handleRequest(request, response);
    };
}

function refuse(response, status, message) {
    const body = JSON.stringify({ jsonrpc: '2.0', error: { code: -32000, message } });
    response.writeHead(status, { 'Content-Type': 'application/json' }).end(body);
}

const doors = {
    '2024-11-05': overSse('2024-11-05'),
    '2025-03-26': withSessions('2025-03-26'),
    '2025-06-18': withSessions('2025-06-18'),
    '2025-11-25': withSessions('2025-11-25'),
    json: inJson('2025-11-25'),
};
const origin = await listen(async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    const door = doors[url.pathname.split('/')[1]];
    if (!door) return response.writeHead(404).end();
    try {
        await door(request, response, url);
    } catch (error) {
        console.error(error);
        if (!response.headersSent) response.writeHead(500).end();
    }
});
const urls = Object.keys(doors).map(name => [name, `${origin}/${name}/${name === '2024-11-05' ? 'sse' : 'mcp'}`]);
console.log(JSON.stringify({ urls: Object.fromEntries(urls) }));
