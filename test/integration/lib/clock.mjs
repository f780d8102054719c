// The clock of a server, set by a library that is preloaded into it (clock.c).

import { execFile } from 'node:child_process';
import { chmodSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const SOURCE = fileURLToPath(new URL('clock.c', import.meta.url));

export function setClock(file, seconds) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64LE(BigInt(seconds) * 1000000000n);
  writeFileSync(file, bytes, { flag: 'r+' });
}

/** Builds it in the directory. `set` takes seconds to be added to the time of day. */
export async function clockOf(directory) {
  const library = `${directory}/clock.so`;
  const file = `${directory}/clock`;
  await promisify(execFile)('cc', ['-std=gnu11', '-O2', '-shared', '-fPIC', '-o', library, SOURCE]);
  const set = (seconds) => setClock(file, seconds);
  writeFileSync(file, Buffer.alloc(8));
  chmodSync(file, 0o644);
  return { library, file, set };
}

/** For the environment of whoever starts the server. */
export const preload = ({ library, file }) => ({ LD_PRELOAD: library, TEST_CLOCK: file });
