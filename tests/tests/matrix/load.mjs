// What the Node clients of the loss matrix share: the command line, the loop of the workers and the report.
// A request is an async function that returns the name of the server that answered, or throws: that is a failure.
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

export const PATHS = { quick: '/quick', slow: '/slow', chunked: '/chunked?parts=3&pause=3000', poll: '/poll' };
const GRACE = 15; // seconds in which the last requests may end

export class Load {
  over = false;
  #report;

  constructor(client, kinds) {
    const text = { type: 'string' };
    const options = { url: text, seconds: text, workers: text, work: text, think: { ...text, default: '20' } };
    const { url, seconds, workers, work, think } = parseArgs({ options }).values;
    if (!kinds.includes(work)) {
      console.error(`${client} has no work '${work}', only ${kinds.join(', ')}.`);
      process.exit(2);
    }
    this.url = url.replace(/\/$/, '');
    this.seconds = Number(seconds);
    this.workers = Number(workers);
    this.work = work;
    this.think = Number(think);
    this.#report = { client, requests: 0, failed: 0, errors: {}, servers: {} };
  }

  // Works until the time is over or SIGTERM comes, and ends the program with the report.
  async run(request) {
    const stop = new AbortController();
    for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => stop.abort());
    let busy = 0;
    const worker = async () => {
      busy++;
      while (!this.over) {
        await request().then(this.#succeed, this.#fail);
        await sleep(this.think * (0.5 + Math.random()));
      }
      busy--;
    };
    const workers = Promise.all(Array.from({ length: this.workers }, worker));
    await sleep(this.seconds * 1000, null, { signal: stop.signal }).catch(() => {});
    this.over = true;
    await Promise.race([workers, sleep(GRACE * 1000)]);
    for (; busy > 0; busy--) this.#fail(new Error(`no end ${GRACE} s after the end of the work`));
    process.stdout.write(JSON.stringify(this.#report) + '\n', () => process.exit(0));
  }

  // Returns the server's name if its answer to an HTTP request is complete and right.
  answered(status, server, body) {
    const right =
      this.work === 'chunked'
        ? [1, 2, 3].map((part) => JSON.stringify({ server, part }) + '\n').join('')
        : JSON.stringify({ server }) + '\n';
    if (status !== 200 || !server || body !== right) {
      throw new Error(`wrong answer: ${status} from ${server}: ${JSON.stringify(body)}`);
    }
    return server;
  }

  #succeed = (server) => {
    this.#report.requests++;
    this.#report.servers[server] = (this.#report.servers[server] ?? 0) + 1;
  };

  #fail = (error) => {
    const { client, errors } = this.#report;
    let text = describe(error);
    this.#report.requests++;
    this.#report.failed++;
    if (!(text in errors) && Object.keys(errors).length >= 9) text = 'others';
    if (!(text in errors)) console.error(`${new Date().toTimeString().slice(0, 8)} ${client}: ${text}`);
    errors[text] = (errors[text] ?? 0) + 1;
  };
}

// The error in one line, with the one at its root.
function describe(error) {
  let root = error;
  while (root.cause) root = root.cause;
  const line = (error) => [error.name, error.code, error.message].filter(Boolean).join(': ');
  const text = root === error ? line(error) : `${line(error)} <- ${line(root)}`;
  return text.replace(/\s+/g, ' ').slice(0, 200);
}
