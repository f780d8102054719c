#!/usr/bin/env node
/**
 * The command pg-changefeed. It asks the database with psql, so that whatever libpq knows of (PG* variables, services,
 * password files, certificates) works here as well, and nothing has to be installed beside it.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import { parseArgs } from 'node:util';

const HELP = `Usage: pg-changefeed types [options]

Writes TypeScript types of the rows, channels and functions of a database, for
createClient<Database>() of pg-changefeed.

  --out FILE       write them to that file; without it to standard output
  --check          do not write: exit with 1 if FILE is not what would be written
  --role ROLE      what clients with that role get, instead of all that is published
  --numbers KIND   double (as JSON.parse makes them; the default), finite (the same,
                   where no column has NaN or an infinity), or lossless (with the
                   codec of pg-changefeed/lossless)
  --dbname DB      a database, or a connection string: postgres://user@host/db
  --help           this

The connection is made by psql, which has to be on the PATH; its variables count:
PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGSERVICE and so on.

Exit status: 0 done, 1 FILE is out of date, 2 wrong usage, 3 the database could not
be asked or FILE could not be read or written.
`;

const fail = (status, message) => {
  process.stderr.write(`pg-changefeed: ${message}\n`);
  process.exit(status);
};

const usage = (message) => fail(2, `${message}\nTry "pg-changefeed --help".`);

function options() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        out: { type: 'string' }, check: { type: 'boolean' }, role: { type: 'string' }, numbers: { type: 'string', default: 'double' },
        dbname: { type: 'string' }, help: { type: 'boolean', short: 'h' },
      },
    });
  } catch (error) {
    return usage(error.message);
  }
}

/** The variables of psql are quoted by psql. */
const SQL = `
SELECT pg_catalog.to_regprocedure('changefeed.typescript_types(regrole,text)') IS NOT NULL AS there \\gset
\\if :there
SELECT changefeed.typescript_types(
    role => CASE WHEN :'with_role' = '' THEN NULL ELSE pg_catalog.quote_ident(:'with_role')::pg_catalog.regrole END,
    numbers => :'with_numbers');
\\endif
`;

function ask({ dbname, role = '', numbers }) {
  const { error, status, stdout, stderr } = spawnSync('psql', [
    '-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1', '-v', `with_role=${role}`, '-v', `with_numbers=${numbers}`,
    ...(dbname === undefined ? [] : ['-d', dbname]), '-f', '-',
  ], { input: SQL, encoding: 'utf8', maxBuffer: 2 ** 28, env: { ...process.env, PGCLIENTENCODING: 'UTF8' } });
  if (error?.code === 'ENOENT') fail(3, 'psql was not found: install the client programs of PostgreSQL, or put them on the PATH');
  if (error) fail(3, `psql could not be run: ${error.message}`);
  if (status !== 0) fail(3, `the types could not be read\n${stderr.trim()}`);
  if (stdout.trim() === '') fail(3, 'this database does not have the extension: run CREATE EXTENSION pg_changefeed in it, or choose another one with --dbname');
  return stdout;
}

const { values, positionals } = options();
if (values.help) {
  process.stdout.write(HELP);
  process.exit(0);
}
if (positionals.length === 0) usage('what is to be done? The only command is "types"');
if (positionals[0] !== 'types') usage(`there is no command "${positionals[0]}"`);
if (positionals.length > 1) usage(`"${positionals[1]}" is too much`);
if (values.check && values.out === undefined) usage('--check needs --out');

const types = ask(values);
if (values.out === undefined) {
  process.stdout.write(types);
} else if (values.check) {
  let there = null;
  try {
    // Git may have changed the ends of lines.
    there = readFileSync(values.out, 'utf8').replaceAll('\r\n', '\n');
  } catch (error) {
    if (error.code !== 'ENOENT') fail(3, error.message);
  }
  if (there !== types) fail(1, `${values.out} is ${there === null ? 'missing' : 'out of date'}: run the same command without --check`);
} else {
  try {
    writeFileSync(values.out, types);
  } catch (error) {
    fail(3, error.message);
  }
}
