#!/usr/bin/env node
// A client of the loss matrix: Node's own http, with one keep-alive Agent for all workers. A stream (sse, websocket) is
// one request, from its beginning until the time is over: 10 s of silence are its end. With the work "fresh" every
// request (of 2 s) has a connection of its own. Any certificate will do.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import https from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import { Load, PATHS as USUAL } from './load.mjs';
import { accept, frame, texts } from './websocket.mjs';

const PATHS = { ...USUAL, fresh: '/slow' };
const load = new Load(`node http.Agent ${process.version}`, [...Object.keys(PATHS), 'sse', 'websocket']);
const library = load.url.startsWith('https:') ? https : http;
const agent = new library.Agent({ keepAlive: load.work !== 'fresh', rejectUnauthorized: false });

function send(path, headers) {
  const request = library.get(load.url + path, { agent, headers });
  const answer = once(request, headers ? 'upgrade' : 'response');
  request.on('error', () => {}); // one during the answer is also thrown where the answer is read
  return answer;
}

async function get() {
  const [response] = await send(PATHS[load.work]);
  let body = '';
  for await (const chunk of response.setEncoding('utf8')) body += chunk;
  return load.answered(response.statusCode, response.headers['x-server'], body);
}

async function sse() {
  const [response] = await send('/events');
  response.setTimeout(10_000, () => response.destroy(new Error('no event for 10 s')));
  const server = response.headers['x-server'];
  let sequence = 0;
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) {
    text += chunk;
    for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
      const event = text.slice(0, end);
      if (event !== `data: ${JSON.stringify({ server, sequence: ++sequence })}`) {
        throw new Error(`event ${sequence} of ${server} is ${event}`);
      }
      if (load.over) return server;
    }
  }
  throw new Error('the stream of events ended');
}

async function websocket() {
  const key = randomBytes(16).toString('base64');
  const version = { 'Sec-WebSocket-Version': 13, 'Sec-WebSocket-Key': key };
  const headers = { Connection: 'Upgrade', Upgrade: 'websocket', ...version };
  const [response, socket] = await send('/ws', headers);
  socket.setTimeout(10_000, () => socket.destroy(new Error('no echo for 10 s')));
  try {
    if (response.headers['sec-websocket-accept'] !== accept(key)) throw new Error('the handshake is wrong');
    const echoes = texts(socket);
    for (let number = 1; ; number++) {
      socket.write(frame(String(number), true));
      const { value, done } = await echoes.next();
      if (done) throw new Error('the WebSocket ended');
      const [server, echo] = value.split(': ');
      if (echo !== String(number)) throw new Error(`echo of ${number} is ${value}`);
      if (load.over) return server;
      await sleep(3000);
    }
  } finally {
    socket.destroy();
  }
}

load.run({ sse, websocket }[load.work] ?? get);
