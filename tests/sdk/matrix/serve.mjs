// Serves functions from web requests to web responses over Node's HTTP server.

import { createServer } from 'node:http';
import { Readable } from 'node:stream';

/** Node's request as the web's, which ends when the client goes away. */
function webRequest(incoming, gone) {
    const headers = new Headers();
    for (let at = 0; at < incoming.rawHeaders.length; at += 2) {
        headers.append(incoming.rawHeaders[at], incoming.rawHeaders[at + 1]);
    }
    const body = ['GET', 'HEAD'].includes(incoming.method) ? undefined : Readable.toWeb(incoming);
    const url = new URL(incoming.url, `http://${incoming.headers.host ?? 'localhost'}`);
    return new Request(url, { method: incoming.method, headers, body, duplex: 'half', signal: gone });
}

/** A listener of Node's that answers with what `answer(request)` says. */
export function webListener(answer) {
    return async (incoming, outgoing) => {
        const gone = new AbortController();
        outgoing.on('close', () => gone.abort());
        try {
            const response = await answer(webRequest(incoming, gone.signal));
            outgoing.writeHead(response.status, Object.fromEntries(response.headers));
            outgoing.flushHeaders();
            if (!response.body) return outgoing.end();
            const body = Readable.fromWeb(response.body);
            outgoing.on('close', () => body.destroy());
            body.on('error', () => outgoing.destroy());
            body.pipe(outgoing);
        } catch (error) {
            console.error(error);
            if (outgoing.headersSent) outgoing.destroy();
            else outgoing.writeHead(500).end();
        }
    };
}

/** Listens on the loopback address and returns its origin. */
export async function listen(listener, port = 0) {
    const server = createServer(listener);
    // A fixture is ended by a signal; until then it keeps what clients keep open.
    server.requestTimeout = 0;
    server.keepAliveTimeout = 60_000;
    await new Promise(resolve => server.listen(port, '127.0.0.1', resolve));
    return `http://127.0.0.1:${server.address().port}`;
}
