// The reference server "everything", over Streamable HTTP with sessions or over HTTP+SSE.
// node start.mjs PORT [sse] prints {"url": …} once it answers. The server's own log goes to stderr.

const [port, transport] = process.argv.slice(2);
if (!port) {
    console.error('usage: start.mjs PORT [sse]');
    process.exit(2);
}
process.env.PORT = port;
process.argv[2] = transport ?? 'streamableHttp';
console.log = console.error;
await import('@modelcontextprotocol/server-everything/dist/index.js');

const url = `http://127.0.0.1:${port}/${transport ?? 'mcp'}`;
for (;;) {
    try {
        const answer = await fetch(url);
        await answer.body?.cancel();
        break;
    } catch {
        await new Promise(resolve => setTimeout(resolve, 20));
    }
}
process.stdout.write(`${JSON.stringify({ url })}\n`);
