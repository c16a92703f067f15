// A zip of files as they are (method "stored": pictures do not get smaller). Format: PKWARE APPNOTE 6.3, 4.3.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function numbers(...fields) { // [bytes, value] each, little endian
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

// `entries`: [name, Blob] each; resolves to the Blob of the zip.
export async function zip(entries) {
  const now = new Date(), files = [], directory = [];
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
  const day = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
  let offset = 0;
  for (const [title, blob] of entries) {
    const name = new TextEncoder().encode(title), data = new Uint8Array(await blob.arrayBuffer());
    // version, flags (UTF-8 name), method, time, day, CRC, two sizes, name's length, extra's length
    const shared = [[2, 20], [2, 0x800], [2, 0], [2, time], [2, day], [4, crc32(data)], [4, data.length],
      [4, data.length], [2, name.length], [2, 0]];
    files.push(numbers([4, 0x04034b50], ...shared), name, data);
    directory.push(numbers([4, 0x02014b50], [2, 20], ...shared, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), name);
    offset += 30 + name.length + data.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0), count = entries.length;
  const end = numbers([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]);
  return new Blob([...files, ...directory, end], { type: "application/zip" });
}
