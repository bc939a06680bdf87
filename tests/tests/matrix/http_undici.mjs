#!/usr/bin/env -S NODE_PATH=/usr/share/nodejs node
// A client of the loss matrix: undici (Debian's node-undici), with one Pool for all workers.
// The pool is as large as there are workers, and any certificate will do; all else is the library's default.
import { createRequire } from 'node:module';
import { Load, PATHS } from './load.mjs';

const require = createRequire(import.meta.url);
const { Pool } = require('undici');
const { version } = require('undici/package.json');

const load = new Load(`undici ${version}`, Object.keys(PATHS));
const pool = new Pool(load.url, { connections: load.workers, connect: { rejectUnauthorized: false } });

load.run(async () => {
  const { statusCode, headers, body } = await pool.request({ method: 'GET', path: PATHS[load.work] });
  return load.answered(statusCode, headers['x-server'], await body.text());
});
