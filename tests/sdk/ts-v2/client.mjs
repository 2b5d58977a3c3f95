// The TypeScript SDK 2.x as a client of the matrix, in both eras: `legacy` never probes, a pin accepts that
// revision and no other.

import { Client, SSEClientTransport, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { ROOTS, headers, main, pages } from '../matrix/client.mjs';

const LOG_LEVEL = 'io.modelcontextprotocol/logLevel';

async function open({ url, token, era, transport: kind }, heard) {
    const stateless = era === 'stateless';
    const client = new Client(
        { name: 'waffles-matrix-ts-v2', version: '1.0.0' },
        {
            capabilities: { elicitation: {}, sampling: {}, roots: {} },
            versionNegotiation: { mode: stateless ? { pin: '2026-07-28' } : 'legacy' },
        },
    );
    client.setRequestHandler('elicitation/create', ({ params }) => heard.elicit(params));
    client.setRequestHandler('sampling/createMessage', ({ params }) => heard.sample(params));
    client.setRequestHandler('roots/list', () => ROOTS);
    client.setNotificationHandler('notifications/message', ({ params }) => heard.log(params));
    client.setNotificationHandler('notifications/resources/updated', ({ params }) => void heard.updates.push(params.uri));
    client.setNotificationHandler('notifications/tools/list_changed', () => void heard.changes.push('tools'));
    client.setNotificationHandler('notifications/resources/list_changed', () => void heard.changes.push('resources'));
    const Transport = kind === 'sse' ? SSEClientTransport : StreamableHTTPClientTransport;
    const transport = new Transport(new URL(url), { requestInit: { headers: headers(token) } });
    await client.connect(transport);
    const fresh = { cacheMode: 'bypass' };
    return {
        revision: client.getNegotiatedProtocolVersion(),
        call(name, args, { onprogress, signal, level } = {}) {
            const params = { name, arguments: args };
            if (stateless && level) params._meta = { [LOG_LEVEL]: level };
            return client.callTool(params, { onprogress, signal });
        },
        setLevel: level => (stateless ? undefined : client.setLoggingLevel(level)),
        tools: () => pages('tools', cursor => client.listTools({ cursor }, fresh)),
        resources: () => pages('resources', cursor => client.listResources({ cursor }, fresh)),
        templates: () => pages('resourceTemplates', cursor => client.listResourceTemplates({ cursor }, fresh)),
        prompts: () => pages('prompts', cursor => client.listPrompts({ cursor }, fresh)),
        read: uri => client.readResource({ uri }, fresh),
        prompt: (name, args) => client.getPrompt({ name, arguments: args }),
        complete: (ref, argument) => client.complete({ ref, argument }),
        async watch({ uri, kind: changed }) {
            if (!stateless) {
                if (!uri) return () => {};
                await client.subscribeResource({ uri });
                return () => client.unsubscribeResource({ uri });
            }
            const filter = uri ? { resourceSubscriptions: [uri] } : { [`${changed}ListChanged`]: true };
            const subscription = await client.listen(filter);
            const honoured = subscription.honoredFilter;
            if (uri ? !honoured.resourceSubscriptions?.includes(uri) : !honoured[`${changed}ListChanged`]) {
                throw new Error(`the subscription was not honoured; saw ${JSON.stringify(honoured)}`);
            }
            return () => subscription.close();
        },
        async close() {
            await transport.terminateSession?.();
            await client.close();
        },
    };
}

await main('ts-v2', open);
