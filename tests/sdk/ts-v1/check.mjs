// The TypeScript SDK 1.x as a client. It speaks sessions only: the SDK has no 2026-07-28.
// node check.mjs URL --token TOKEN

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import {
    CreateMessageRequestSchema,
    ElicitRequestSchema,
    ResourceUpdatedNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { gone, headers, options, run } from '../check.mjs';

if (options().era !== 'sessions') {
    console.error('the TypeScript SDK 1.x speaks sessions only');
    process.exit(2);
}

const seen = {};
let transport;
const client = new Client(
    { name: 'waffles-check-ts-v1', version: '1.0.0' },
    { capabilities: { elicitation: {}, sampling: {} } },
);
client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
    seen.question = params.message;
    return { action: 'accept', content: { answer: 'maple' } };
});
client.setRequestHandler(CreateMessageRequestSchema, ({ params }) => {
    const { content } = params.messages[0];
    seen.prompt = (Array.isArray(content) ? content[0] : content).text;
    return { model: 'checker', role: 'assistant', content: { type: 'text', text: 'waffle' } };
});

await run({
    name: 'ts-v1',
    seen,
    notFound: -32002,
    async connect({ url, token }) {
        transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: headers(token) } });
        await client.connect(transport);
        if (!transport.sessionId) throw new Error('the server gave no session');
    },
    call: (name, args, more) => client.callTool({ name, arguments: args }, undefined, more),
    read: uri => client.readResource({ uri }),
    tools: async () => (await client.listTools()).tools,
    resources: async () => (await client.listResources()).resources,
    templates: async () => (await client.listResourceTemplates()).resourceTemplates,
    prompts: async () => (await client.listPrompts()).prompts,
    prompt: (name, args) => client.getPrompt({ name, arguments: args }),
    async updates(uri) {
        const update = new Promise(resolve => {
            client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => {
                if (params.uri === uri) resolve();
            });
        });
        await client.subscribeResource({ uri });
        await update;
        await client.unsubscribeResource({ uri });
    },
    async close(given) {
        const session = transport.sessionId;
        await transport.terminateSession();
        await client.close();
        await gone(given, session);
    },
});
