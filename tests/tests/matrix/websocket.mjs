// What the WebSocket server and client of the loss matrix share: text frames of less than 126 bytes (RFC 6455),
// one to a message, and nothing else. A client masks its frames.
import { createHash, randomBytes } from 'node:crypto';

const TEXT = 0x81; // the last (and only) frame of a text message

export function accept(key) {
  return createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
}

export function frame(text, masked) {
  const payload = Buffer.from(text);
  const mask = masked ? randomBytes(4) : Buffer.alloc(0);
  if (masked) payload.forEach((byte, at) => (payload[at] = byte ^ mask[at % 4]));
  return Buffer.concat([Buffer.from([TEXT, (masked ? 0x80 : 0) | payload.length]), mask, payload]);
}

// The texts that come from a socket, until it ends or anything but a short text arrives.
export async function* texts(socket) {
  let bytes = Buffer.alloc(0);
  for await (const chunk of socket) {
    bytes = Buffer.concat([bytes, chunk]);
    while (bytes.length >= 2) {
      const length = bytes[1] & 0x7f;
      const start = bytes[1] & 0x80 ? 6 : 2;
      if (bytes[0] !== TEXT || length > 125) return;
      if (bytes.length < start + length) break;
      const payload = Buffer.from(bytes.subarray(start, start + length));
      if (start === 6) payload.forEach((byte, at) => (payload[at] = byte ^ bytes[2 + (at % 4)]));
      bytes = bytes.subarray(start + length);
      yield payload.toString();
    }
  }
}
