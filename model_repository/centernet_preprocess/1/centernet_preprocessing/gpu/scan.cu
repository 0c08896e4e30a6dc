// Reads the Huffman-coded scans of baseline JPEGs, to find out whether they are whole. Codes are of many
// lengths, yet a decoder that starts amid them falls in step with them soon, so that parts of a scan can be
// read at the same time: A. Weissenberger and B. Schmidt, "Massively Parallel Huffman Decoding on GPUs" (2018)
// and "Accelerating JPEG Decompression on GPUs" (2021).

constexpr int kFastBits = 10;  // codes up to this length are looked up at once
constexpr int kCodeBits = 16;
constexpr int kPartBytes = 128;
constexpr unsigned kCoefficients = 64;
constexpr unsigned kNoCode = 65 << 8 | kCodeBits;  // a step that no code has: out of the block, and on
constexpr int kEveryBlock = 0x7fffffff;
constexpr int kNoPart = 0x7fffffff;
constexpr int kMaxPasses = 128;
constexpr int kPatience = 8;  // passes

// A Huffman table. A step is what to do for a code: how many bits to pass, its value's with it, and, times 256,
// by how many coefficients to advance.
struct Table {
  unsigned short limits[kCodeBits + 1];   // of 16 bits: where codes longer than so many bits begin
  unsigned short offsets[kCodeBits + 1];  // from a code of so many bits to its step, modulo 2^16
  unsigned short steps[256];
};

struct Scan {
  Table tables[4];  // DC and AC, of the first and the second pair
  long long start;  // where its bytes are, with zeros behind them; a multiple of 4
  long long parts;  // where its parts are
  int bytes;        // at least one; a zero behind a last FF is not counted
  int blocks;       // expected
  unsigned period;  // of the blocks' pairs of tables
  unsigned pairs;   // a bit for each block of a period
};

// A part of a scan. A state is the bits that belong to the part before, times 2^16; the block in its period,
// times 2^8; and the coefficient that comes next.
struct Part {
  unsigned start, end;  // states
  int blocks;           // that end in it
  bool regular, moved;
};

__shared__ struct {
  unsigned short steps[4][1 << kFastBits];  // by the next bits; 0 for codes that are longer
  Table tables[4];
  int blocks;
  int first_moved[2];  // in passes of even and odd numbers
} shared;

__device__ unsigned slowStep(const Table& table, unsigned window, int length) {
  while (length <= kCodeBits && window >= table.limits[length]) {
    ++length;
  }
  if (length > kCodeBits) {
    return kNoCode;
  }
  return table.steps[((window >> (kCodeBits - length)) + table.offsets[length]) & 255];
}

// The bits of a scan from one of its parts on, without the zeros that stand behind each FF.
struct Reader {
  const unsigned* words;
  unsigned left;    // words of the part
  unsigned loaded;  // bits
  unsigned stop;    // bits of the part, once they are all loaded
  unsigned long long bits;
  bool after_ff, marker;

  __device__ void load() {
    if (left-- == 0) {
      stop = loaded;
    }
    const unsigned word = __byte_perm(*words++, 0, 0x0123);
    // No byte of it is FF.
    if (!after_ff && (((word & 0x7f7f7f7fu) + 0x01010101u) & word & 0x80808080u) == 0) {
      bits = bits << 32 | word;
      loaded += 32;
      return;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
      const unsigned byte = word >> shift & 0xff;
      if (!after_ff) {
        bits = bits << 8 | byte;
        loaded += 8;
      } else if (byte != 0) {
        marker = true;
      }
      after_ff = !after_ff && byte == 0xff;
    }
  }
};

// Reads a part from its start, up to the first code that begins behind it, or only so many blocks.
__device__ void read(const Scan& scan, const unsigned char* bytes, int index, int most, Part& part) {
  const int begin = index * kPartBytes;
  const unsigned char* first = bytes + scan.start + begin;
  Reader reader = {};
  reader.words = reinterpret_cast<const unsigned*>(first);
  reader.left = (min(kPartBytes, scan.bytes - begin) + 3) / 4;
  reader.stop = ~0u;
  reader.after_ff = begin > 0 && first[-1] == 0xff;
  const unsigned pairs = scan.pairs;
  const unsigned period = scan.period;
  unsigned position = part.start >> 16;
  unsigned block = part.start >> 8 & 0xff;
  unsigned coefficient = part.start & 0xff;
  int blocks = 0;
  bool regular = true;
  while (true) {
    while (reader.loaded <= position + 32) {
      reader.load();
    }
    if (position >= reader.stop || blocks >= most) {
      break;
    }
    const int table = 2 * (pairs >> block & 1) + (coefficient > 0);
    const unsigned window =
        static_cast<unsigned>(reader.bits >> (reader.loaded - position - kCodeBits)) & 0xffff;
    unsigned step = shared.steps[table][window >> (kCodeBits - kFastBits)];
    if (step == 0) {
      step = slowStep(shared.tables[table], window, kFastBits + 1);
    }
    position += step & 0xff;
    coefficient += step >> 8;
    if (coefficient >= kCoefficients) {
      regular &= step != kNoCode;
      coefficient = 0;
      ++blocks;
      block = block + 1 == period ? 0 : block + 1;
    }
  }
  part.end = (position - reader.stop) << 16 | block << 8 | coefficient;
  part.blocks = blocks;
  part.regular = regular && !reader.marker;
}

// Whether the blocks that are missing end the scan: the last of them in its last byte.
__device__ bool endsWell(const Scan& scan, const unsigned char* bytes, int count, Part part) {
  const int missing = scan.blocks - shared.blocks;
  read(scan, bytes, count - 1, missing, part);
  const bool within_block = (part.end & 0xff) != 0;
  // Zeros fill the last word.
  int rest = -static_cast<short>(part.end >> 16) - 8 * (-scan.bytes & 3);
  if (scan.bytes % 4 != 0 && bytes[scan.start + scan.bytes - 1] == 0xff) {
    rest += 8;
  }
  return part.regular && !within_block && part.blocks == missing && rest >= 0 && rest < 8;
}

// Fills the shared memory.
__device__ void prepare(const Scan& scan) {
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < static_cast<int>(sizeof(scan.tables) / 4); i += threads) {
    reinterpret_cast<unsigned*>(shared.tables)[i] = reinterpret_cast<const unsigned*>(scan.tables)[i];
  }
  if (thread == 0) {
    shared.blocks = 0;
    shared.first_moved[0] = shared.first_moved[1] = kNoPart;
  }
  __syncthreads();
  for (int i = thread; i < 4 << kFastBits; i += threads) {
    const int number = i >> kFastBits;
    const int bits = i & ((1 << kFastBits) - 1);
    const Table& table = shared.tables[number];
    const unsigned window = bits << (kCodeBits - kFastBits);
    shared.steps[number][bits] = window < table.limits[kFastBits] ? slowStep(table, window, 1) : 0;
  }
  __syncthreads();
}

__device__ int countParts(const Scan& scan) { return (scan.bytes + kPartBytes - 1) / kPartBytes; }

// One thread for each part; blockIdx.y counts scans. It begins amid a code of the part before, most likely,
// and is in step when it comes to its own.
extern "C" __global__ void begin(const Scan* scans, const unsigned char* bytes, Part* every_part) {
  const Scan& scan = scans[blockIdx.y];
  const int count = countParts(scan);
  const int first = static_cast<int>(blockIdx.x * blockDim.x);
  if (first >= count) {
    return;
  }
  prepare(scan);
  const int index = first + static_cast<int>(threadIdx.x);
  if (index < count) {
    Part part = {};
    if (index > 0) {
      read(scan, bytes, index - 1, kEveryBlock, part);
      part.start = part.end;
    }
    read(scan, bytes, index, kEveryBlock, part);
    every_part[scan.parts + index] = part;
  }
}

// One block of threads for each scan. Sets `whole` to 1 where a decoder would find nothing amiss. Parts are
// read again from where the part before ended, until that changes nothing.
extern "C" __global__ void __launch_bounds__(1024)
    check(const Scan* scans, const unsigned char* bytes, Part* every_part, unsigned char* whole) {
  const Scan& scan = scans[blockIdx.x];
  Part* parts = every_part + scan.parts;
  const int count = countParts(scan);
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  prepare(scan);
  bool settled = false;
  for (int pass = 1; pass <= kMaxPasses && !settled; ++pass) {
    int* const first_moved = &shared.first_moved[pass & 1];
    __syncthreads();
    bool moved = false;
    for (int i = thread; i < count; i += threads) {
      const unsigned start = i == 0 ? 0 : parts[i - 1].end;
      parts[i].moved = start != parts[i].start;
      parts[i].start = start;
      if (parts[i].moved && !moved) {
        atomicMin(first_moved, i);
        moved = true;
      }
    }
    settled = !__syncthreads_or(moved);
    if (thread == 0) {
      shared.first_moved[~pass & 1] = kNoPart;
    }
    // Where a picture is all of one colour, its code repeats itself, and a decoder may stay out of step for
    // ever. What the first such part starts with is then a better guess for those behind it.
    const bool guess = pass % kPatience == 0;
    for (int i = thread; i < count; i += threads) {
      if (guess && i > *first_moved && parts[i].start == parts[i].end) {
        parts[i].moved |= parts[i].start != parts[*first_moved].start;
        parts[i].start = parts[*first_moved].start;
      }
      if (parts[i].moved) {
        read(scan, bytes, i, kEveryBlock, parts[i]);
      }
    }
  }

  // Behind the last block, the last part has bits that mean nothing.
  bool regular = true;
  int blocks = 0;
  for (int i = thread; i < count - 1; i += threads) {
    regular &= parts[i].regular;
    blocks += parts[i].blocks;
  }
  atomicAdd(&shared.blocks, blocks);
  const bool irregular = __syncthreads_or(!regular);
  if (thread == 0) {
    whole[blockIdx.x] = settled && !irregular && endsWell(scan, bytes, count, parts[count - 1]);
  }
}
