#!/usr/bin/env node
// A client of the loss matrix: the fetch that is built into Node, with its own pool.
// Nothing is set: everything is the library's default.
import { Load, PATHS } from './load.mjs';

const load = new Load(`node fetch ${process.version}, undici ${process.versions.undici}`, Object.keys(PATHS));

load.run(async () => {
  const answer = await fetch(load.url + PATHS[load.work]);
  return load.answered(answer.status, answer.headers.get('x-server'), await answer.text());
});
