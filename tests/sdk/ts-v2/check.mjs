// The TypeScript SDK 2.x as a client, in both eras. The SDK chooses by
// `versionNegotiation.mode`: `legacy` never probes, a pin accepts that revision and no other.
// node check.mjs URL --token TOKEN --era sessions|stateless

import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { gone, headers, options, run } from '../check.mjs';

const stateless = options().era === 'stateless';
const seen = {};
let transport;
const client = new Client(
    { name: 'waffles-check-ts-v2', version: '1.0.0' },
    {
        capabilities: { elicitation: {}, sampling: {} },
        versionNegotiation: { mode: stateless ? { pin: '2026-07-28' } : 'legacy' },
    },
);
client.setRequestHandler('elicitation/create', ({ params }) => {
    seen.question = params.message;
    return { action: 'accept', content: { answer: 'maple' } };
});
client.setRequestHandler('sampling/createMessage', ({ params }) => {
    const { content } = params.messages[0];
    seen.prompt = (Array.isArray(content) ? content[0] : content).text;
    return { model: 'checker', role: 'assistant', content: { type: 'text', text: 'waffle' } };
});

await run({
    name: 'ts-v2',
    seen,
    // This SDK turns the -32002 of the session era into -32602 too.
    notFound: -32602,
    async connect({ url, token }) {
        transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: headers(token) } });
        await client.connect(transport);
        const version = client.getNegotiatedProtocolVersion();
        if ((version === '2026-07-28') !== stateless) throw new Error(`the wrong era: ${version}`);
        if (Boolean(transport.sessionId) === stateless) throw new Error(`the session is ${transport.sessionId}`);
    },
    call: (name, args, more) => client.callTool({ name, arguments: args }, more),
    read: uri => client.readResource({ uri }, { cacheMode: 'bypass' }),
    tools: async () => (await client.listTools()).tools,
    resources: async () => (await client.listResources()).resources,
    templates: async () => (await client.listResourceTemplates()).resourceTemplates,
    prompts: async () => (await client.listPrompts()).prompts,
    prompt: (name, args) => client.getPrompt({ name, arguments: args }),
    async updates(uri) {
        const update = new Promise(resolve => {
            client.setNotificationHandler('notifications/resources/updated', ({ params }) => {
                if (params.uri === uri) resolve();
            });
        });
        if (stateless) {
            const subscription = await client.listen({ resourceSubscriptions: [uri] });
            const honoured = subscription.honoredFilter.resourceSubscriptions ?? [];
            if (!honoured.includes(uri)) throw new Error('the subscription was not honoured');
            await update;
            await subscription.close();
        } else {
            await client.subscribeResource({ uri });
            await update;
            await client.unsubscribeResource({ uri });
        }
    },
    async close(given) {
        const session = transport.sessionId;
        if (session) await transport.terminateSession();
        await client.close();
        if (session) await gone(given, session);
    },
});
