#!/usr/bin/env node
// The HTTP server of the loss matrix: server.mjs --name b1 --address 10.0.0.1 --port 8080. It tells its name in every
// answer, never ends a connection of its own accord, and exits at once on SIGTERM. /count tells how many requests have
// come so far. With a key and a certificate (files in
// PEM) it speaks TLS.
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { accept, frame, texts } from './websocket.mjs';

const text = { type: 'string' };
const options = { name: text, address: text, port: text, key: text, certificate: text };
const { name, address, port, key, certificate } = parseArgs({ options }).values;

let count = 0;

async function answer(request, response) {
  const url = new URL(request.url, 'http://server');
  if (url.pathname === '/count') return response.end(`${count}\n`);
  count++;
  const whole = async (delay) => {
    await sleep(delay);
    response.end(JSON.stringify({ server: name }) + '\n');
  };
  response.setHeader('X-Server', name);
  switch (url.pathname) {
    case '/quick':
      return whole(1);
    case '/slow':
      return whole(2000);
    case '/poll':
      return whole(8000);
    case '/chunked':
      return chunks(response, Number(url.searchParams.get('parts')), Number(url.searchParams.get('pause')));
    case '/events':
      return events(response);
    default:
      response.writeHead(404).end();
  }
}

async function chunks(response, parts, pause) {
  for (let part = 1; part <= parts; part++) {
    if (part > 1) await sleep(pause);
    response.write(JSON.stringify({ server: name, part }) + '\n');
  }
  response.end();
}

async function events(response) {
  response.setHeader('Content-Type', 'text/event-stream');
  for (let sequence = 1; !response.destroyed; sequence++) {
    response.write(`data: ${JSON.stringify({ server: name, sequence })}\n\n`);
    await sleep(3000);
  }
}

// Echoes texts, with the name before them.
async function echo(request, socket) {
  const key = accept(request.headers['sec-websocket-key']);
  socket.write(
    'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n' +
      `Sec-WebSocket-Accept: ${key}\r\nX-Server: ${name}\r\n\r\n`,
  );
  try {
    for await (const message of texts(socket)) socket.write(frame(`${name}: ${message}`, false));
  } catch {
    // The client has left.
  }
  socket.destroy();
}

const patient = { requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 600_000 };
const server = key
  ? https.createServer({ ...patient, key: readFileSync(key), cert: readFileSync(certificate) }, answer)
  : http.createServer(patient, answer);
server.on('upgrade', echo);
server.listen(Number(port), address, () => console.log(`${name} listens on ${address}:${port}`));
process.on('SIGTERM', () => process.exit(0));
