// Fixture servers of the TypeScript SDK 2.x: one with sessions, and a stateless one.
// node fixture.mjs prints {"urls": {"2025-11-25": …, "2026-07-28": …}}

import { randomUUID } from 'node:crypto';
import {
    InMemoryServerEventBus,
    ProtocolError,
    Server,
    WebStandardStreamableHTTPServerTransport,
    createMcpHandler,
    inputRequired,
    inputResponse,
} from '@modelcontextprotocol/server';
import { CAPABILITIES, LEVELS, Refusal, World, handlers } from '../matrix/fixture.mjs';
import { listen, webListener } from '../matrix/serve.mjs';

/** One server of `revision`: a session of its own, or a single request. */
function build(world, revision) {
    const stateless = revision === '2026-07-28';
    const server = new Server(
        { name: 'waffles-fixture-ts-v2', version: '1.0.0' },
        { capabilities: CAPABILITIES, instructions: 'Call echo.', supportedProtocolVersions: [revision] },
    );
    let level = 'debug';
    const subscribed = new Set();
    if (!stateless) {
        server.setRequestHandler('logging/setLevel', ({ params }) => {
            level = params.level;
            return {};
        });
        server.setRequestHandler('resources/subscribe', ({ params }) => {
            subscribed.add(params.uri);
            return {};
        });
        server.setRequestHandler('resources/unsubscribe', ({ params }) => {
            subscribed.delete(params.uri);
            return {};
        });
    }
    const io = ctx => ({
        signal: ctx.mcpReq.signal,
        async progress(progress, total) {
            const progressToken = ctx.mcpReq._meta?.progressToken;
            if (progressToken === undefined) return;
            await ctx.mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress, total } });
        },
        async log(at, data) {
            // The SDK itself keeps to the level that a stateless request asks for.
            if (stateless) return ctx.mcpReq.log(at, data);
            if (LEVELS.indexOf(at) < LEVELS.indexOf(level)) return;
            await ctx.mcpReq.notify({ method: 'notifications/message', params: { level: at, data } });
        },
        // The SDK turns the interim result into a request of its own for a client with a session.
        ask(method, params, finish) {
            const response = inputResponse(ctx.mcpReq.inputResponses, 'asked');
            if (response.kind === 'missing') return inputRequired({ inputRequests: { asked: { method, params } } });
            return finish(response.kind === 'sampling' ? response.result : response);
        },
    });
    const known = handlers(world, { notFound: stateless ? -32602 : -32002 });
    for (const [method, handler] of Object.entries(known)) {
        server.setRequestHandler(method, async ({ params }, ctx) => {
            try {
                return await handler(params ?? {}, io(ctx));
            } catch (error) {
                throw error instanceof Refusal ? new ProtocolError(error.code, error.message) : error;
            }
        });
    }
    if (!stateless) {
        const ignore = () => {};
        server.onclose = world.listen(event => {
            if (event.kind === 'tools') server.sendToolListChanged().catch(ignore);
            else if (subscribed.has(event.uri)) server.sendResourceUpdated({ uri: event.uri }).catch(ignore);
        });
    }
    return server;
}

function withSessions(revision) {
    const world = new World();
    const sessions = new Map();
    return async request => {
        const id = request.headers.get('mcp-session-id');
        if (id) {
            const transport = sessions.get(id);
            if (transport) return transport.handleRequest(request);
            const error = { code: -32001, message: 'There is no such session.' };
            return Response.json({ jsonrpc: '2.0', error }, { status: 404 });
        }
        const transport = new WebStandardStreamableHTTPServerTransport({
            sessionIdGenerator: randomUUID,
            onsessioninitialized: session => void sessions.set(session, transport),
            onsessionclosed: session => void sessions.delete(session),
        });
        await build(world, revision).connect(transport);
        return transport.handleRequest(request);
    };
}

function stateless(revision) {
    const world = new World();
    const bus = new InMemoryServerEventBus();
    world.listen(event =>
        bus.publish(event.kind === 'tools' ? { kind: 'tools_list_changed' } : { kind: 'resource_updated', uri: event.uri }),
    );
    const handler = createMcpHandler(() => build(world, revision), { legacy: 'reject', bus });
    return request => handler.fetch(request);
}

const doors = { '2025-11-25': withSessions('2025-11-25'), '2026-07-28': stateless('2026-07-28') };
const origin = await listen(
    webListener(async request => {
        const door = doors[new URL(request.url).pathname.split('/')[1]];
        return door ? door(request) : new Response(null, { status: 404 });
    }),
);
const urls = Object.keys(doors).map(name => [name, `${origin}/${name}/mcp`]);
console.log(JSON.stringify({ urls: Object.fromEntries(urls) }));
