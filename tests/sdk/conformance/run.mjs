// Runs all server scenarios of the conformance suite for one revision and writes what they
// found as data. It exits with 1 only when the suite itself did not run.
// node run.mjs URL --spec 2025-11-25|2026-07-28 [--token TOKEN] --out FILE [--scenario NAME]

import { spawn } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { node22 } from '../matrix/node22.mjs';
import { inject } from './inject.mjs';

const [url, ...rest] = process.argv.slice(2);
const read = name => (rest.includes(name) ? rest[rest.indexOf(name) + 1] : undefined);
const spec = read('--spec');
const out = read('--out');
if (!url || !spec || !out) {
    console.error('usage: run.mjs URL --spec 2025-11-25|2026-07-28 [--token TOKEN] --out FILE [--scenario NAME]');
    process.exit(2);
}

const require = createRequire(import.meta.url);

// The suite cannot send a header of ours, so a forwarder in this process adds it.
const forwarder = read('--token') === undefined ? undefined : await inject(url, read('--token'));
const folder = await mkdtemp(join(tmpdir(), 'waffles-conformance-'));
try {
    const suite = join(dirname(require.resolve('@modelcontextprotocol/conformance/package.json')), 'dist', 'index.js');
    const args = [suite, 'server', '--url', forwarder?.url ?? url, '--spec-version', spec, '-o', folder];
    args.push(...(read('--scenario') ? ['--scenario', read('--scenario')] : ['--suite', 'all']));
    const child = spawn(node22(import.meta.url), args, { stdio: ['ignore', 'ignore', 'inherit'] });
    await new Promise((resolve, reject) => child.on('error', reject).on('exit', resolve));
    const scenarios = {};
    for (const entry of (await readdir(folder)).sort()) {
        const name = /^server-(.+?)-\d{4}-\d{2}-\d{2}T/.exec(entry)?.[1];
        if (!name) continue;
        const checks = JSON.parse(await readFile(join(folder, entry, 'checks.json'), 'utf8')).map(
            ({ id, name, status, errorMessage }) => ({ id, name, status, ...(errorMessage && { error: errorMessage }) }),
        );
        const has = status => checks.some(check => check.status === status);
        const status = has('FAILURE') ? 'failed' : has('WARNING') ? 'warned' : has('SUCCESS') ? 'passed' : 'skipped';
        scenarios[name] = { status, checks };
    }
    if (!Object.keys(scenarios).length) throw new Error('the suite has run no scenario');
    await writeFile(out, `${JSON.stringify(scenarios, null, 2)}\n`);
    const by = status => Object.keys(scenarios).filter(name => scenarios[name].status === status);
    const summary = { spec, passed: by('passed').length };
    for (const status of ['failed', 'warned', 'skipped']) summary[status] = by(status);
    console.log(JSON.stringify(summary));
} finally {
    forwarder?.close();
    await rm(folder, { recursive: true, force: true });
}
