// The command line of the MCP Inspector as a client of the matrix. Each request is a run of its own, with a
// connection of its own: what needs a connection that stays, or an answer from the client, it does not do.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { main } from '../matrix/client.mjs';
import { node22 } from '../matrix/node22.mjs';

const node = node22(import.meta.url);
if (node !== process.execPath) {
    const child = spawn(node, [fileURLToPath(import.meta.url)], { stdio: 'inherit' });
    const code = await new Promise(resolve => child.on('exit', resolve));
    process.exit(code ?? 1);
}

const home = mkdtempSync(join(tmpdir(), 'waffles-inspector-'));
process.on('exit', () => rmSync(home, { recursive: true, force: true }));
process.env.MCP_CATALOG_PATH = join(home, 'mcp.json');
process.env.MCP_CLIENT_CONFIG_PATH = join(home, 'client.json');
const root = dirname(createRequire(import.meta.url).resolve('@modelcontextprotocol/inspector/package.json'));
// The entry of the program, in one process: a process for each request would take half a second each.
const { runCli } = await import(pathToFileURL(join(root, 'clients/cli/build/index.js')).href);

const ALONE = 'makes one request in a run';
let runs = 0;

async function open({ url, token, era }) {
    const once = async (method, ...more) => {
        runs += 1;
        const output = join(home, `${runs}.json`);
        const given = ['--transport', url.endsWith('/sse') ? 'sse' : 'http', '--quiet', '--output', output];
        given.push('--protocol-era', era === 'stateless' ? 'modern' : 'legacy');
        if (token) given.push('--header', `Authorization: Bearer ${token}`);
        let failed;
        try {
            await runCli([process.execPath, 'inspector-cli', url, ...given, '--method', method, ...more]);
        } catch (error) {
            failed = error;
        }
        try {
            const read = JSON.parse(readFileSync(output, 'utf8'));
            return read.result ?? read;
        } catch (error) {
            throw failed ?? error;
        }
    };
    const { protocolVersion } = await once('initialize');
    return {
        revision: protocolVersion,
        rootless: true,
        limits: {
            progress: 'shows no progress',
            log: ALONE,
            cancel: ALONE,
            elicitation: 'asks nobody',
            sampling: 'has no model',
            subscribe: ALONE,
            completion: 'has no such command',
            'list-changed': ALONE,
        },
        call: (name, args) => once('tools/call', '--tool-name', name, '--tool-args-json', JSON.stringify(args)),
        tools: async () => (await once('tools/list')).tools,
        resources: async () => (await once('resources/list')).resources,
        templates: async () => (await once('resources/templates/list')).resourceTemplates,
        prompts: async () => (await once('prompts/list')).prompts,
        read: uri => once('resources/read', '--uri', uri),
        prompt(name, args) {
            const pairs = Object.entries(args).map(([key, value]) => `${key}=${value}`);
            return once('prompts/get', '--prompt-name', name, '--prompt-args', ...pairs);
        },
        close() {},
    };
}

await main('inspector', open);
