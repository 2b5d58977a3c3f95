// The TypeScript SDK 1.x as a client of the matrix: sessions over Streamable HTTP, or HTTP+SSE.

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import * as types from '@modelcontextprotocol/sdk/types.js';
import { ROOTS, headers, main, pages } from '../matrix/client.mjs';

async function open({ url, token, transport: kind }, heard) {
    const client = new Client(
        { name: 'waffles-matrix-ts-v1', version: '1.0.0' },
        { capabilities: { elicitation: {}, sampling: {}, roots: { listChanged: true } } },
    );
    client.setRequestHandler(types.ElicitRequestSchema, ({ params }) => heard.elicit(params));
    client.setRequestHandler(types.CreateMessageRequestSchema, ({ params }) => heard.sample(params));
    client.setRequestHandler(types.ListRootsRequestSchema, () => ROOTS);
    client.setNotificationHandler(types.LoggingMessageNotificationSchema, ({ params }) => heard.log(params));
    client.setNotificationHandler(types.ResourceUpdatedNotificationSchema, ({ params }) => void heard.updates.push(params.uri));
    client.setNotificationHandler(types.ToolListChangedNotificationSchema, () => void heard.changes.push('tools'));
    client.setNotificationHandler(types.ResourceListChangedNotificationSchema, () => void heard.changes.push('resources'));
    const Transport = kind === 'sse' ? SSEClientTransport : StreamableHTTPClientTransport;
    const transport = new Transport(new URL(url), { requestInit: { headers: headers(token) } });
    let revision = '2024-11-05';
    const spoken = transport.setProtocolVersion?.bind(transport);
    transport.setProtocolVersion = version => {
        revision = version;
        spoken?.(version);
    };
    await client.connect(transport);
    return {
        revision,
        call: (name, args, { onprogress, signal } = {}) => client.callTool({ name, arguments: args }, undefined, { onprogress, signal }),
        setLevel: level => client.setLoggingLevel(level),
        tools: () => pages('tools', cursor => client.listTools({ cursor })),
        resources: () => pages('resources', cursor => client.listResources({ cursor })),
        templates: () => pages('resourceTemplates', cursor => client.listResourceTemplates({ cursor })),
        prompts: () => pages('prompts', cursor => client.listPrompts({ cursor })),
        read: uri => client.readResource({ uri }),
        prompt: (name, args) => client.getPrompt({ name, arguments: args }),
        complete: (ref, argument) => client.complete({ ref, argument }),
        async watch({ uri }) {
            // Word of changed lists comes by itself.
            if (!uri) return () => {};
            await client.subscribeResource({ uri });
            return () => client.unsubscribeResource({ uri });
        },
        async close() {
            await transport.terminateSession?.();
            await client.close();
        },
    };
}

await main('ts-v1', open);
