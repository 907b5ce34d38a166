"use strict";

// Text chunks of a PNG file (its specification's 11.3.4.3): a canvas writes none, and a mask must say what it is.

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

function textChunk(keyword, text) {
  const latin1 = (string) => Uint8Array.from(string, (letter) => (letter.charCodeAt(0) < 256 ? letter.charCodeAt(0) : 63));
  const data = latin1(`tEXt${keyword}\0${text}`);
  const chunk = new Uint8Array(data.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length - 4);
  chunk.set(data, 4);
  view.setUint32(data.length + 4, crc32(data));
  return chunk;
}

function withTexts(blob, texts) {
  const afterHeader = 33; // 8 bytes of signature, and IHDR, which has always 25
  const chunks = Object.entries(texts).map(([keyword, text]) => textChunk(keyword, text));
  return new Blob([blob.slice(0, afterHeader), ...chunks, blob.slice(afterHeader)], { type: "image/png" });
}
