// Finds a Node 22 for programs that need one on a machine with an older Node.

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/** The path of a Node 22: this one, or the copy that the folder of `from` (an `import.meta.url`) has installed. */
export function node22(from) {
    if (Number(process.versions.node.split('.')[0]) >= 22) return process.execPath;
    const name = `node-${process.platform}-${process.arch}`;
    const binary = join(dirname(createRequire(from).resolve(`${name}/package.json`)), 'bin', 'node');
    if (!existsSync(binary)) throw new Error(`this needs Node 22, and ${name} is not installed`);
    return binary;
}
