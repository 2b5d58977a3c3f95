// A forwarder that adds a bearer token to every request and streams both ways. Only tests use
// it: the conformance suite has no option for a header.
// node inject.mjs URL TOKEN [PORT] prints {"url": …}

import http from 'node:http';
import https from 'node:https';
import { pathToFileURL } from 'node:url';

/** Starts a forwarder to `target` on a free port of the loopback address. */
export async function inject(target, token, port = 0) {
    const to = new URL(target);
    const client = to.protocol === 'https:' ? https : http;
    const agent = new client.Agent({ keepAlive: true });
    const server = http.createServer((incoming, outgoing) => {
        // `rawHeaders` keeps repeated headers and their spelling as the suite sent them. The
        // Host stays too unless it names this forwarder: some scenarios lie about it.
        const own = `127.0.0.1:${server.address().port}`;
        const headers = [];
        for (let at = 0; at < incoming.rawHeaders.length; at += 2) {
            const [name, value] = incoming.rawHeaders.slice(at, at + 2);
            const local = value.replace(own, to.host).replace(own.replace('127.0.0.1', 'localhost'), to.host);
            const lower = name.toLowerCase();
            if (lower === 'authorization' || lower === 'connection') continue;
            headers.push(name, lower === 'host' || lower === 'origin' ? local : value);
        }
        headers.push('Authorization', `Bearer ${token}`);
        const upstream = client.request(
            {
                agent,
                host: to.hostname,
                port: to.port || (to.protocol === 'https:' ? 443 : 80),
                method: incoming.method,
                path: to.pathname + to.search,
                headers,
            },
            response => {
                outgoing.writeHead(response.statusCode, response.rawHeaders);
                outgoing.flushHeaders();
                response.pipe(outgoing);
                response.on('error', () => outgoing.destroy());
            },
        );
        upstream.on('error', error => {
            if (outgoing.headersSent) outgoing.destroy();
            else outgoing.writeHead(502).end(String(error));
        });
        // A client that goes away takes its request with it: in the stateless era that is how
        // it cancels.
        outgoing.on('close', () => upstream.destroy());
        incoming.pipe(upstream);
    });
    await new Promise(resolve => server.listen(port, '127.0.0.1', resolve));
    return {
        url: `http://127.0.0.1:${server.address().port}${to.pathname}`,
        close() {
            server.close();
            server.closeAllConnections();
            agent.destroy();
        },
    };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
    const [target, token, port] = process.argv.slice(2);
    const { url } = await inject(target, token, Number(port ?? 0));
    console.log(JSON.stringify({ url }));
}
