// Lists every scenario and check that passed directly and did not through the gateway, and
// exits with 1 if there is one.
// node compare.mjs DIRECT.json VIA.json

import { readFile } from 'node:fs/promises';

const [direct, via] = await Promise.all(
    process.argv.slice(2, 4).map(async path => JSON.parse(await readFile(path, 'utf8'))),
);

const rank = { SUCCESS: 0, INFO: 0, SKIPPED: 1, WARNING: 2, FAILURE: 3 };

/** The worst verdict of each check by its id: an id may occur several times in a scenario. */
function verdicts(scenario) {
    const worst = new Map();
    for (const check of scenario?.checks ?? []) {
        const known = worst.get(check.id);
        if (!known || rank[check.status] > rank[known.status]) worst.set(check.id, check);
    }
    return worst;
}

let lost = 0;
function lose(line) {
    lost += 1;
    console.log(line);
}

for (const [name, scenario] of Object.entries(direct)) {
    if (!via[name]) {
        lose(`${name}: did not run through the gateway`);
        continue;
    }
    const found = verdicts(via[name]);
    for (const [id, check] of verdicts(scenario)) {
        const other = found.get(id);
        if (check.status === 'SUCCESS' && other?.status !== 'SUCCESS') {
            lose(`${name}: ${id}: ${other ? `${other.status}: ${other.error ?? ''}` : 'was not checked'}`);
        }
    }
    // A check that only the run through the gateway knows is a loss when it failed: the suite
    // adds some only when something goes wrong.
    for (const [id, check] of found) {
        if (check.status === 'FAILURE' && !verdicts(scenario).has(id)) {
            lose(`${name}: ${id}: FAILURE: ${check.error ?? ''}`);
        }
    }
}
const count = Object.keys(direct).length;
console.log(lost ? `${lost} lost in ${count} scenarios` : `nothing lost in ${count} scenarios`);
process.exit(lost ? 1 : 0);
