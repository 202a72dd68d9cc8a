// SHAKE-256 (FIPS 202, sections 3.2, 3.3, 4 and 6.2), which browsers do not have. A lane of 64 bits is two 32-bit halves.

const RATE = 136; // bytes that one permutation takes or gives
const ROUNDS = 24;

// Steps rho and pi together: which lane goes where, and by how many bits it is turned. Lane (x, y) is number x + 5 y.
const MOVES = [];
for (let step = 0, x = 1, y = 0; step < 24; step++) {
  const [toX, toY] = [y, (2 * x + 3 * y) % 5];
  MOVES.push({ from: x + 5 * y, to: toX + 5 * toY, bits: (((step + 1) * (step + 2)) / 2) % 64 });
  [x, y] = [toX, toY];
}

// Step iota's constants: bit 2^j - 1 of each comes from a shift register over x^8 + x^6 + x^5 + x^4 + 1.
const CONSTANTS = new Uint32Array(2 * ROUNDS);
for (let round = 0, register = 1; round < ROUNDS; round++) {
  for (let j = 0; j < 7; j++) {
    const bit = 2 ** j - 1;
    if (register & 1) CONSTANTS[2 * round + (bit >> 5)] |= 1 << (bit & 31);
    register = (register << 1) ^ (register >> 7 ? 0x171 : 0);
  }
}

function permute(lanes) {
  const column = new Uint32Array(10);
  const moved = new Uint32Array(50);
  for (let round = 0; round < ROUNDS; round++) {
    // theta
    column.fill(0);
    for (let i = 0; i < 50; i++) column[i % 10] ^= lanes[i];
    for (let x = 0; x < 5; x++) {
      const before = 2 * ((x + 4) % 5);
      const after = 2 * ((x + 1) % 5);
      const low = column[before] ^ ((column[after] << 1) | (column[after + 1] >>> 31));
      const high = column[before + 1] ^ ((column[after + 1] << 1) | (column[after] >>> 31));
      for (let i = 2 * x; i < 50; i += 10) {
        lanes[i] ^= low;
        lanes[i + 1] ^= high;
      }
    }
    // rho and pi; no turn is by 0 or 32 bits, so both shifts are below 32
    moved[0] = lanes[0];
    moved[1] = lanes[1];
    for (const { from, to, bits } of MOVES) {
      const swap = bits >= 32 ? 1 : 0;
      const low = lanes[2 * from + swap];
      const high = lanes[2 * from + 1 - swap];
      const turn = bits % 32;
      moved[2 * to] = (low << turn) | (high >>> (32 - turn));
      moved[2 * to + 1] = (high << turn) | (low >>> (32 - turn));
    }
    // chi
    for (let row = 0; row < 50; row += 10) {
      for (let i = 0; i < 10; i++) {
        lanes[row + i] = moved[row + i] ^ (~moved[row + ((i + 2) % 10)] & moved[row + ((i + 4) % 10)]);
      }
    }
    // iota
    lanes[0] ^= CONSTANTS[2 * round];
    lanes[1] ^= CONSTANTS[2 * round + 1];
  }
}

/** The first `length` bytes of SHAKE-256 of some bytes. */
export function shake256(message, length) {
  const lanes = new Uint32Array(50);
  const add = (byte, at) => {
    lanes[at >> 2] ^= byte << (8 * (at & 3));
  };
  let at = 0;
  for (const byte of message) {
    add(byte, at);
    if (++at === RATE) {
      permute(lanes);
      at = 0;
    }
  }
  add(0x1f, at);
  add(0x80, RATE - 1);
  const output = new Uint8Array(length);
  for (let i = 0; i < length; i++) {
    if (i % RATE === 0) permute(lanes);
    const place = i % RATE;
    output[i] = lanes[place >> 2] >>> (8 * (place & 3));
  }
  return output;
}
